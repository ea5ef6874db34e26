"""`eventbus broadcast`: publish test messages and notifications, and observe the cluster."""
