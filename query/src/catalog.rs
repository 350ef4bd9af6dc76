//! The names that a question may use: the pinned tables, and views that are planned when named.
//!
//! Nothing can be added, replaced or removed by SQL.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::ViewTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::TableType;
use parking_lot::RwLock;

use crate::views::{self, View};

/// The one catalog.
pub(crate) const CATALOG: &str = "custody";
/// The one schema.
pub(crate) const SCHEMA: &str = "public";

/// The tables of one question by name.
pub(crate) type Tables = BTreeMap<&'static str, Arc<dyn TableProvider>>;

/// Tables and views of one question.
pub(crate) struct Names {
    tables: Tables,
    session: OnceLock<Weak<RwLock<SessionState>>>,
}

impl Names {
    pub(crate) fn new(tables: Tables) -> Arc<Self> {
        Arc::new(Self { tables, session: OnceLock::new() })
    }

    /// Tells the names which session plans their views. Only the first call counts.
    pub(crate) fn planned_by(&self, session: Weak<RwLock<SessionState>>) {
        self.session.get_or_init(|| session);
    }

    async fn plan(&self, view: &View) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let session = self.session.get().and_then(Weak::upgrade).ok_or_else(|| {
            DataFusionError::Internal("the question's session has ended".to_owned())
        })?;
        let state = session.read().clone();
        let plan = state.create_logical_plan(&view.sql).await?;
        Ok(Arc::new(ViewTable::new(plan, Some(view.sql.clone()))))
    }
}

#[async_trait]
impl SchemaProvider for Names {
    fn table_names(&self) -> Vec<String> {
        let views = views::VIEWS.iter().map(|view| view.name);
        self.tables.keys().copied().chain(views).map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(table) = self.tables.get(name) {
            return Ok(Some(Arc::clone(table)));
        }
        match views::find(name) {
            Some(view) => self.plan(view).await.map(Some),
            None => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        if self.tables.contains_key(name) {
            return Ok(Some(TableType::Base));
        }
        Ok(views::find(name).map(|_| TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name) || views::find(name).is_some()
    }
}

/// The only catalog with the only schema, at every level of DataFusion's naming.
#[derive(Debug)]
pub(crate) struct OneCatalog(pub(crate) Arc<Names>);

impl CatalogProvider for OneCatalog {
    fn schema_names(&self) -> Vec<String> {
        vec![SCHEMA.to_owned()]
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        (name == SCHEMA).then(|| Arc::clone(&self.0) as Arc<dyn SchemaProvider>)
    }
}

impl CatalogProviderList for OneCatalog {
    fn register_catalog(
        &self,
        _name: String,
        _catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        let this = Self(Arc::clone(&self.0));
        (name == CATALOG).then(|| Arc::new(this) as Arc<dyn CatalogProvider>)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tables.keys()).finish()
    }
}
