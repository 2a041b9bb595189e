"""What a server keeps of texts between requests: beginnings that are known, and named sessions."""
