//! Beginning, resending, looking at and canceling a verification.
