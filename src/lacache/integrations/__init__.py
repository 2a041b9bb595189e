"""LaCache inside other libraries. Each module needs an extra and is imported only when used."""
