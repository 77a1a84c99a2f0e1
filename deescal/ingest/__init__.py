"""What becomes a clip: files, folders, globs, object-store prefixes, manifests, and transcripts made elsewhere."""
