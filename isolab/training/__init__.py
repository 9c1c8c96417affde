"""From a config to a loss curve: one compiled program for runs that differ in traced values."""
