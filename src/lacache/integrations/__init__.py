"""LaCache inside of other libraries. Each needs an extra, and is loaded only when it is used."""
