"""The lab in the notebook: where the server runs, the object a user holds, the live board, the magics."""
