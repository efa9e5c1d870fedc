//! A production web service. [`platform`] is the template's; every other module is a domain and the project's.

pub mod platform;

pub mod links;
