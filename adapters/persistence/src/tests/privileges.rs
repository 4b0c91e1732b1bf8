//! A part reports each privilege that it lacks, and needs no more than those of `grants.sql`.

use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::support::{accepted, enqueue, new_postgres, phone, start};
use crate::{
    Database, DatabaseSettings, Part, PostgresSettings, SqlForgetting, SqlStories, StorageError,
    check_storage, overview, storage::probe,
};

const GRANTS: &str = include_str!("../grants.sql");

/// Returns connections of the owner, and of a new role with the privileges of `role`.
async fn as_role(roles: &[&str]) -> Option<(Database, Database, String)> {
    let settings = new_postgres().await?;
    let owner = Database::connect_lazily(&DatabaseSettings::Postgres(settings.clone()), "test", 1);
    Migrator::up(&owner.connection(), None).await.unwrap();
    let own = format!("{}_{}", roles[0], settings.database);
    let password = settings.password.clone().unwrap_or_default();
    let create = format!("CREATE ROLE {own} LOGIN PASSWORD '{password}'");
    owner.connection().execute_unprepared(&create).await.unwrap();
    for line in GRANTS.lines().filter(|line| line.starts_with("GRANT")) {
        let (grant, grantee) = line.trim_end_matches(';').split_once(" TO ").unwrap();
        if roles.contains(&grantee) {
            let grant = format!("{grant} TO {own}");
            owner.connection().execute_unprepared(&grant).await.unwrap();
        }
    }
    let settings = PostgresSettings { user: own.clone(), ..settings };
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 1);
    Some((owner, database, own))
}

async fn assert_each_missing_privilege_is_reported(roles: &[&str], parts: &[Part]) {
    let Some((owner, database, own)) = as_role(roles).await else { return };
    check_storage(&database, parts).await.unwrap();

    for line in GRANTS.lines().filter(|line| line.starts_with("GRANT")) {
        let (grant, grantee) = line.trim_end_matches(';').split_once(" TO ").unwrap();
        if !roles.contains(&grantee) || grant.contains("seaql_migrations") {
            continue;
        }
        let (privileges, table) = grant.trim_start_matches("GRANT ").split_once(" ON ").unwrap();
        for privilege in privileges.split(", ") {
            let what = format!("{privilege} ON {table}");
            let run = async |sql: String| owner.connection().execute_unprepared(&sql).await;

            run(format!("REVOKE {what} FROM {own}")).await.unwrap();
            let told = check_storage(&database, parts).await;
            run(format!("GRANT {what} TO {own}")).await.unwrap();

            let expected = [format!("{privilege} on {table}")];
            let Err(StorageError::Privileges { missing }) = told else { panic!("{what}") };
            assert_eq!(missing, expected);
        }
    }
    check_storage(&database, parts).await.unwrap();
}

#[tokio::test]
async fn each_missing_privilege_of_the_api_is_reported() {
    assert_each_missing_privilege_is_reported(&["messager_api"], &[Part::Api]).await;
}

#[tokio::test]
async fn each_missing_privilege_of_the_processor_with_the_queue_is_reported() {
    let roles = ["messager_processor", "messager_queue"];
    assert_each_missing_privilege_is_reported(&roles, &[Part::Processor, Part::Queue]).await;
}

#[tokio::test]
async fn each_missing_privilege_of_the_consumer_is_reported() {
    assert_each_missing_privilege_is_reported(&["messager_consumer"], &[Part::Consumer]).await;
}

#[tokio::test]
async fn operator_may_read_and_erase_a_phone() {
    let Some((owner, database, _)) = as_role(&["messager_operator"]).await else { return };
    accepted(&enqueue(&owner, &start(&phone(1))).await);
    let number = phone(1).parse().unwrap();
    let stories = SqlStories::new(database.clone());
    let found = stories.of_phone(&number, 1, 10, &|_| ()).await.unwrap();
    assert_eq!(found.stories.len(), 1);
    assert_eq!(overview(&database).await.unwrap().accepted, 1);

    let forgetting = SqlForgetting::new(database, "1".to_owned(), "message".to_owned());
    let traces = forgetting.find(&number, &|_| ()).await.unwrap();
    forgetting.stop(&traces).await.unwrap();
    forgetting.end_late(&traces).await.unwrap();
    forgetting.erase(&traces).await.unwrap();

    assert!(!forgetting.is_back(&number).await.unwrap());
}

#[tokio::test]
async fn probe_frees_its_space_in_another_session_too() {
    let Some(settings) = new_postgres().await else { return };
    let database = Database::connect_lazily(&DatabaseSettings::Postgres(settings), "test", 4);
    Migrator::up(&database.connection(), None).await.unwrap();
    let pool = database.connection();
    let pool = pool.get_postgres_connection_pool();
    // Several idle sessions, so that two statements in turn have different ones.
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(pool.acquire().await.unwrap());
    }
    drop(sessions);

    for _ in 0..8 {
        probe(&database, Part::Api, 1_000).await.unwrap();
    }

    let sql = "SELECT count(*) AS it FROM write_probe WHERE length(filler) > 0";
    let counted = Statement::from_string(DbBackend::Postgres, sql);
    let row = database.connection().query_one_raw(counted).await.unwrap().unwrap();
    assert_eq!(row.try_get::<i64>("", "it").unwrap(), 0);
}
