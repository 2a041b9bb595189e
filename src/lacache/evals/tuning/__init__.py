"""Which configuration suits a model and a text: a search in bounded time, on two objectives."""
