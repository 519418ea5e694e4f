"""Images to arrays: data sets, preprocessing, embeddings, scores, pictures. No database."""
