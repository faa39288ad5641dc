//! How a stranger's component runs.
