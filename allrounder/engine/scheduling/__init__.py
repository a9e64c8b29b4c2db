"""Which request runs when: queue, admission, chunked prefill, and where requests end."""
