"""The Julia engine (placeholder until issue 3 lands in this session)."""
