"""Track: metrics, TensorBoard, and questions about runs."""
