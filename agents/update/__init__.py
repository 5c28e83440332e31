"""The update of one model after the other: a pure machine, the shell that does what it decides, and whom it trusts."""
