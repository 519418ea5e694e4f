"""Files to arrays: data set folders, CSV tables, decoding, preprocessing, local contrast.

Uses `core` only.
"""
