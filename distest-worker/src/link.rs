//! Two tarpc services over one byte stream, in both directions.
