"""Page bookkeeping: integers only. Which KV pages are free, who refers to them, and which prefixes they hold."""
