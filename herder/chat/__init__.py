"""Messages <-> tokens: one chat format a file, each renders a conversation and parses the answer back."""
