"""The server: the vendors' dialects over one engine request, models on demand, keys and quotas, the chat page."""
