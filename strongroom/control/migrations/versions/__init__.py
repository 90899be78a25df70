"""One pair of files a revision, `NNNN_name.py` and `NNNN_name.sql`. A revision that was released never changes."""
