//! The public door under hostile callers: what they send, how they send it, and how long they take.

mod api;
mod connections;
mod proxies;
mod requests;
