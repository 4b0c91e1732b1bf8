use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "queue_record")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) topic: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) partition: i32,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) offset: i64,
    pub(super) key: Option<String>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: String,
    /// Milliseconds since 1970, by the database's clock.
    pub(super) written_at: i64,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
