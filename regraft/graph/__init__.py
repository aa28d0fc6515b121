"""The program being rewritten: protocols, matcher, sites, snapshots and cost."""
