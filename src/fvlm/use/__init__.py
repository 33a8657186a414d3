"""What people do with a trained model: questions about their own videos, pages, a folder to take along."""
