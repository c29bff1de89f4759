"""What training draws from: accepted samples, their synthesis and their injection."""
