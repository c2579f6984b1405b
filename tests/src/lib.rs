#![doc = include_str!("../README.md")]

pub mod documents;
#[cfg(test)]
mod links;
