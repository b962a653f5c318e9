"""What a report looks like: tables and records in, text out. No torch, and nothing is written here."""
