"""What training costs: seconds, memory."""
