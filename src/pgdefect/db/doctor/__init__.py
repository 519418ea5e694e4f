"""What is wrong with a database, one function a check; each finding names its remedy."""
