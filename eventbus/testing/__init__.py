"""What tests of services on eventbus need."""
