"""What is said, one file per conversation; both sides use the same classes."""
