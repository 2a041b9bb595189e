"""Small helpers that every package uses: validation, files, folders, optional packages."""
