//! Empty library target, which the package requires; the integration tests are in `it`.
