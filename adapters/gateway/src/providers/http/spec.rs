//! The settings of a provider that they describe, and how it is made of them.

use http::{HeaderName, HeaderValue, Method, uri::Authority};
use serde_json::Value;

use super::{
    Body, Described, Meaning, NoRequest,
    path::Path,
    receipts::Receipts,
    rules::{Format, Rule},
    settings::{NO_PATH, Table},
    signature::{self, Signature},
    template::{Mode, Template, Templates},
    tree::{Planter, Tree},
    variables::{NAMES, OF_REQUEST, Own, samples},
};
use crate::{
    client::has_good_port,
    fields::{Fields, Secret},
    request::{basic, bearer},
    spec::{Field, FieldKind, ProviderSpec},
};

pub(crate) static SPEC: ProviderSpec = ProviderSpec {
    name: "http",
    title: "Any provider, by description",
    sender: true,
    params: &["*"],
    fields: &[
        Field::required(
            "url",
            FieldKind::Text,
            "The URL of the request, a template. Values in it are percent-encoded.",
        ),
        Field::with_default(
            "method",
            FieldKind::OneOf(&["POST", "GET", "PUT", "PATCH"]),
            "POST",
            "The method of the request.",
        ),
        Field::optional("query", FieldKind::Any, "A table of templates, added to the URL."),
        Field::optional("headers", FieldKind::Any, "A table of templates, one for each header."),
        Field::optional(
            "body",
            FieldKind::Any,
            "The body, a table whose texts are templates. Without it there is no body.",
        ),
        Field::with_default(
            "body_format",
            FieldKind::OneOf(&["json", "form"]),
            "json",
            "How the body is written.",
        ),
        Field::with_default(
            "auth",
            FieldKind::OneOf(&["none", "basic", "bearer"]),
            "none",
            "`basic` sends `username` and `password`, `bearer` sends `token`, in `Authorization`.",
        ),
        Field::optional("username", FieldKind::Text, "For `auth` and templates."),
        Field::optional("password", FieldKind::Secret, "For `auth` and templates."),
        Field::optional("token", FieldKind::Secret, "For `auth` and templates."),
        Field::optional("secret", FieldKind::Secret, "The key of `signature`."),
        Field::optional("signature", FieldKind::Any, "A table: the HMAC of a request in a header."),
        Field::optional(
            "sender",
            FieldKind::Text,
            "The sender, for templates, if the route gives none.",
        ),
        Field::with_default(
            "answer",
            FieldKind::OneOf(&["json", "form", "text"]),
            "json",
            "The form of the answers.",
        ),
        Field::optional(
            "message_id",
            FieldKind::Text,
            "The path of the provider's id in an answer. An answer 2xx without it is ambiguous.",
        ),
        Field::optional(
            "message_id_after",
            FieldKind::Text,
            "The text in front of the provider's id in an answer. The id ends at a space or a comma.",
        ),
        Field::optional(
            "error_code",
            FieldKind::Text,
            "The path of the provider's code of an error, which goes into logs.",
        ),
        Field::optional(
            "rules",
            FieldKind::Any,
            "A list of tables: which answers have which outcome. The first that fits counts.",
        ),
        Field::with_default(
            "deduplicates",
            FieldKind::Boolean,
            "false",
            "Whether the provider documents that it sends one SMS for each `id`.",
        ),
        Field::optional("receipts", FieldKind::Any, "A table: the form of the receipts."),
        Field::optional(
            "receipt_secret",
            FieldKind::Secret,
            "The key of the receipts' signature. The default is `secret`.",
        ),
    ],
    make: |fields| Some(Box::new(make(fields)?)),
};

fn make(fields: &mut Fields<'_>) -> Option<Described> {
    let own = Own {
        sender: fields.text("sender"),
        username: fields.text("username"),
        password: fields.secret("password"),
        token: fields.secret("token"),
        secret: fields.secret("secret"),
    };
    let receipt_secret = fields.secret("receipt_secret");
    let mut templates = Templates::new();
    let method = fields.one_of("method").and_then(|it| it.parse::<Method>().ok());
    let url = url(fields, &mut templates);
    let query = pairs(fields, &mut templates, "query");
    let headers = headers(fields, &mut templates);
    let body = body(fields, &mut templates, method.as_ref());
    let authorization = authorization(fields, &own);
    let signature = signature(fields, &mut templates, own.secret.as_ref());
    let receipts =
        receipts(fields, &mut templates, receipt_secret.as_ref().or(own.secret.as_ref()));
    let by_reference = receipts.as_ref().is_some_and(Receipts::are_by_reference);
    let meaning = meaning(fields, by_reference);
    let deduplicates = fields.boolean("deduplicates");
    let provider = Described {
        templates,
        method: method?,
        url: url?,
        query: query?,
        headers: headers?,
        body: body?,
        authorization,
        signature: signature?,
        own,
        meaning: meaning?,
        deduplicates: deduplicates?,
        receipts,
    };
    provider.check(fields);
    Some(provider)
}

impl Described {
    /// Makes requests for samples, so that a template that cannot work is found at the start.
    fn check(&self, fields: &mut Fields<'_>) {
        for sample in samples(&self.own) {
            let mut is_good = true;
            self.each_template(&mut |template| {
                if let Err(problem) = self.templates.try_render(template, &sample) {
                    fields.problem(template.place(), problem);
                    is_good = false;
                }
            });
            if !is_good {
                return;
            }
            match self.made(&sample) {
                Ok(_) => {}
                Err(NoRequest::NoUrl) => return fields.problem("url", "gives no URL"),
                Err(NoRequest::Broken(broken)) => {
                    return fields.problem(broken.place(), "cannot be rendered");
                }
            }
        }
        let mut uses_id = false;
        self.each_template(&mut |template| uses_id |= self.templates.uses(template, "id"));
        if self.deduplicates && !uses_id {
            fields.problem("deduplicates", "needs {{ id }} in the request");
        }
    }

    /// Calls `see` with each template of the request but that of the signature.
    fn each_template<'a>(&'a self, see: &mut impl FnMut(&'a Template)) {
        see(&self.url);
        for (_, tree) in &self.query {
            tree.templates(see);
        }
        for (_, tree) in &self.headers {
            tree.templates(see);
        }
        match &self.body {
            Body::None => {}
            Body::Json(tree) => tree.templates(see),
            Body::Form(entries) => entries.iter().for_each(|(_, tree)| tree.templates(see)),
        }
    }
}

/// Compiles the URL. Its host is fixed, so that no value decides where the SMS and the keys go.
fn url(fields: &mut Fields<'_>, templates: &mut Templates) -> Option<Template> {
    let source = fields.text("url")?;
    let fixed = &source[..source.find("{{").or_else(|| source.find("{%")).unwrap_or(source.len())];
    let (scheme, rest) = fixed.split_once("://").unwrap_or_default();
    let host_ends = rest.contains(['/', '?']) || fixed.len() == source.len();
    let host = rest.split(['/', '?']).next().unwrap_or_default().parse::<Authority>();
    let is_good_host = host.is_ok_and(|host| {
        !host.host().is_empty() && !host.as_str().contains('@') && has_good_port(&host)
    });
    let is_good_scheme = ["http", "https"].iter().any(|it| it.eq_ignore_ascii_case(scheme));
    if !host_ends || !is_good_host || !is_good_scheme || source.contains('#') {
        fields.problem(
            "url",
            "must begin with http:// or https:// and a fixed host, without credentials, which go \
             into username and password",
        );
        return None;
    }
    planted(fields, templates, NAMES, |planter| planter.template(Mode::Url, "url", &source))
}

fn planted<T>(
    fields: &mut Fields<'_>,
    templates: &mut Templates,
    names: &[&str],
    plant: impl FnOnce(&mut Planter<'_>) -> Option<T>,
) -> Option<T> {
    let mut planter = Planter { templates, names, problems: Vec::new() };
    let tree = plant(&mut planter);
    for (place, problem) in planter.problems {
        fields.problem(&place, problem);
    }
    tree
}

/// Reads a table of templates, each for a text or a list of texts.
fn pairs(
    fields: &mut Fields<'_>,
    templates: &mut Templates,
    name: &str,
) -> Option<Vec<(String, Tree)>> {
    let Some(value) = fields.value(name) else { return Some(Vec::new()) };
    let Some(table) = value.as_object() else {
        fields.problem(name, "must be a table");
        return None;
    };
    let entries = planted(fields, templates, NAMES, |planter| planter.table(name, table))?;
    for (key, _) in entries.iter().filter(|(_, tree)| !tree.is_flat()) {
        fields.problem(&format!("{name}.{key}"), "must be a text, or a list of texts");
    }
    Some(entries)
}

fn headers(fields: &mut Fields<'_>, templates: &mut Templates) -> Option<Vec<(HeaderName, Tree)>> {
    let entries = pairs(fields, templates, "headers")?;
    let mut headers = Vec::with_capacity(entries.len());
    for (name, tree) in entries {
        match name.parse::<HeaderName>() {
            Ok(_) if matches!(tree, Tree::List(_)) => {
                fields.problem(&format!("headers.{name}"), "must be a text");
            }
            Ok(parsed) => headers.push((parsed, tree)),
            Err(_) => fields.problem(&format!("headers.{name}"), "is not the name of a header"),
        }
    }
    Some(headers)
}

fn body(
    fields: &mut Fields<'_>,
    templates: &mut Templates,
    method: Option<&Method>,
) -> Option<Body> {
    let format = fields.one_of("body_format");
    if !fields.is_set("body") {
        return Some(Body::None);
    }
    if method == Some(&Method::GET) {
        fields.problem("body", "must not be set with the method GET");
        return None;
    }
    if format == Some("form") {
        return pairs(fields, templates, "body").map(Body::Form);
    }
    let value = fields.value("body")?;
    planted(fields, templates, NAMES, |planter| planter.tree("body", &value)).map(Body::Json)
}

fn authorization(fields: &mut Fields<'_>, own: &Own) -> Option<HeaderValue> {
    match fields.one_of("auth")? {
        "basic" => {
            if own.username.is_none() {
                fields.problem("username", "is missing: auth = \"basic\" needs it");
            }
            let password = own.password.as_ref().map_or("", Secret::expose);
            Some(basic(own.username.as_ref()?, password))
        }
        "bearer" => {
            if own.token.is_none() {
                fields.problem("token", "is missing: auth = \"bearer\" needs it");
            }
            own.token.as_ref().map(|token| bearer(token.expose()))
        }
        _ => None,
    }
}

/// The outer `None` is a problem.
#[expect(clippy::option_option, reason = "a signature may be missing, or wrong")]
fn signature(
    fields: &mut Fields<'_>,
    templates: &mut Templates,
    key: Option<&Secret>,
) -> Option<Option<Signature>> {
    let Some(value) = fields.value("signature") else { return Some(None) };
    let names = [NAMES, OF_REQUEST].concat();
    let mut table = Table::of(fields, "signature", &value, signature::KEYS)?;
    Signature::read(&mut table, templates, &names, key, "secret").map(Some)
}

fn receipts(
    fields: &mut Fields<'_>,
    templates: &mut Templates,
    key: Option<&Secret>,
) -> Option<Receipts> {
    let value: Value = fields.value("receipts")?;
    Receipts::read(fields, &value, templates, key)
}

fn meaning(fields: &mut Fields<'_>, by_reference: bool) -> Option<Meaning> {
    let format = match fields.one_of("answer")? {
        "form" => Format::Form,
        "text" => Format::Text,
        _ => Format::Json,
    };
    let (id, code) = (path(fields, "message_id", format), path(fields, "error_code", format));
    let id_after = fields.text("message_id_after");
    if id.is_some() && id_after.is_some() {
        fields.problem("message_id_after", "must not be set together with message_id");
    }
    if by_reference && id.is_none() && id_after.is_none() {
        fields.problem("message_id", "is missing: the receipts name messages by it");
    }
    let rules = fields.value("rules");
    let rules = rules.map(|value| Rule::all(fields, &value, format)).unwrap_or_default();
    Some(Meaning { format, rules, id, id_after, code, by_reference })
}

fn path(fields: &mut Fields<'_>, name: &str, format: Format) -> Option<Path> {
    let path = Path::parse(&fields.text(name)?);
    if path.is_none() {
        fields.problem(name, NO_PATH);
    }
    if format == Format::Text {
        fields.problem(name, "needs an answer in JSON or as a form");
    }
    path
}
