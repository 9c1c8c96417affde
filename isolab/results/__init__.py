"""What a run left behind: rows on disk, cached measurements, and where they came from."""
