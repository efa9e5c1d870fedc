//! The health check of PostgreSQL.

use sqlx::{Connection, PgConnection};

use crate::platform::error_class::ErrorClass;
use crate::platform::health::monitor::Probe;
use crate::platform::postgres::Database;

/// Verifies the schema until no migration is pending, and from then on sends a ping. Uses a connection of its own.
pub struct PostgresProbe {
    database: Database,
    connection: Option<PgConnection>,
    schema_verified: bool,
}

impl PostgresProbe {
    pub fn new(database: Database) -> Self {
        Self { database, connection: None, schema_verified: false }
    }

    async fn verify(&mut self) -> sqlx::Result<()> {
        // Taken out, so that a failed or cancelled check leaves no broken connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect().await?,
        };
        if self.schema_verified {
            connection.ping().await?;
        } else {
            self.schema_verified = self.database.pending(&mut connection).await?.is_empty();
        }
        self.connection = Some(connection);
        Ok(())
    }
}

impl Probe for PostgresProbe {
    async fn check(&mut self) -> Result<(), ErrorClass> {
        self.verify().await.map_err(|error| ErrorClass::from(&error))?;
        // Not ready rather than failing requests. `app migrate` updates the schema.
        if self.schema_verified { Ok(()) } else { Err(ErrorClass::SchemaOutdated) }
    }
}
