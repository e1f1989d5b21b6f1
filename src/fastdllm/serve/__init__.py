"""The server: requests join and leave the batch between any two passes."""
