"""Mechanism: what runs a batch. They meet the engine in core.batch.Executor."""
