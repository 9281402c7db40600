"""What doctor finds out about a cluster: facts, findings, and a probe on its nodes."""
