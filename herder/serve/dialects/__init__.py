"""One file a vendor's API: every field of its requests, JSON to request, and the answer's bytes. Pure, no I/O."""
