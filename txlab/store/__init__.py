"""What survives the kernel."""
