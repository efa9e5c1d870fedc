//! Validates what `deploy/kubernetes` renders: the restricted profile, consistency with the rest of the repository, and the
//! order of steps in its script. Needs no cluster; `deploy/kubernetes/check` runs it after the schemas.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

#[path = "../stack/docker.rs"]
#[expect(dead_code, reason = "part of the module needs an engine")]
mod docker;
mod restricted;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "part of the module is for the other test binaries")]
mod support;

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use app::platform::config::definitions::{KEYS, variable};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::docker::{root, run};
use crate::restricted::violations;

const OVERLAYS: [&str; 2] = ["staging", "production"];
const IMAGE: &str = "registry.example:5000/app:1.2.3_RC1";

/// Parses YAML documents with the linters' Python.
fn parse(yaml: &str) -> Vec<Value> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let program = "import sys, json, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let mut python = Command::new(target.join("linters/bin/python3"));
    python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("deploy/kubernetes/check installs Python");
    python.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

struct Rendered(Vec<Value>);

impl Rendered {
    fn new(overlay: &str) -> Self {
        let mut deploy = Command::new(root().join("deploy/kubernetes/deploy"));
        Self(parse(&run(deploy.args(["--render", overlay, IMAGE]))))
    }

    #[track_caller]
    fn one(&self, kind: &str) -> &Value {
        let found: Vec<_> = self.0.iter().filter(|object| object["kind"] == kind).collect();
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    }

    /// Returns the pod templates of the service and of the migration.
    fn templates(&self) -> [&Value; 2] {
        ["Deployment", "Job"].map(|kind| &self.one(kind)["spec"]["template"])
    }

    /// Returns the environment variables of the pods.
    fn settings(&self) -> Map<String, Value> {
        self.one("ConfigMap")["data"].as_object().unwrap().clone()
    }

    /// Returns the effective value of a setting.
    fn setting(&self, key: &str) -> String {
        let given = self.settings().get(&variable(key)).map(|value| text(value).to_owned());
        given.unwrap_or_else(|| KEYS[key].default.clone())
    }

    fn pause(&self, key: &str) -> u64 {
        humantime::parse_duration(&self.setting(key)).unwrap().as_secs()
    }
}

#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn pods_keep_the_restricted_profile() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        let labels = &rendered.one("Namespace")["metadata"]["labels"];
        assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
        let version = text(&labels["pod-security.kubernetes.io/enforce-version"]);
        assert!(version.starts_with("v1.") && version[3..].parse::<u8>().is_ok(), "{version}");
        for template in rendered.templates() {
            assert_eq!(violations(template), [""; 0]);
        }
    }
}

#[test]
fn each_control_of_the_restricted_profile_is_looked_at() {
    let (rendered, own) = (Rendered::new("production"), "/spec/containers/0/securityContext");
    let faults = [
        ("host process", "/spec/securityContext", "windowsOptions", json!({"hostProcess": true})),
        ("host namespaces", "/spec", "hostNetwork", json!(true)),
        ("host namespaces", "/spec", "hostPID", json!(true)),
        ("host namespaces", "/spec", "hostIPC", json!(true)),
        ("privileged", own, "privileged", json!(true)),
        ("capabilities", own, "capabilities", json!({"drop": ["ALL"], "add": ["CHOWN"]})),
        ("capabilities", own, "capabilities", json!({"drop": ["CHOWN"]})),
        ("volume types", "/spec", "volumes", json!([{"name": "host", "hostPath": {"path": "/"}}])),
        ("host ports", "/spec/containers/0", "ports", json!([{"containerPort": 8080, "hostPort": 8080}])),
        (
            "hosts of probes and hooks",
            "/spec/containers/0/livenessProbe/httpGet",
            "host",
            json!("example.org"),
        ),
        ("AppArmor", own, "appArmorProfile", json!({"type": "Unconfined"})),
        (
            "AppArmor",
            "/metadata/annotations",
            "container.apparmor.security.beta.kubernetes.io/app",
            json!("unconfined"),
        ),
        ("SELinux", own, "seLinuxOptions", json!({"type": "spc_t"})),
        ("SELinux", own, "seLinuxOptions", json!({"user": "root"})),
        ("proc mount", own, "procMount", json!("Unmasked")),
        ("sysctls", "/spec/securityContext", "sysctls", json!([{"name": "kernel.msgmax", "value": "1"}])),
        ("privilege escalation", own, "allowPrivilegeEscalation", json!(null)),
        ("non-root", "/spec/securityContext", "runAsNonRoot", json!(null)),
        ("non-root", own, "runAsNonRoot", json!(false)),
        ("user", own, "runAsUser", json!(0)),
        ("seccomp", "/spec/securityContext", "seccompProfile", json!(null)),
        ("seccomp", own, "seccompProfile", json!({"type": "Unconfined"})),
    ];
    for (control, place, field, value) in faults {
        let mut template = rendered.templates()[0].clone();
        template.pointer_mut(place).unwrap()[field] = value;
        assert_eq!(violations(&template), [control], "{place}/{field}");
    }
    let mut template = rendered.templates()[0].clone();
    template["spec"]["initContainers"] = json!([{"name": "bare"}]);
    assert_eq!(violations(&template), ["capabilities", "privilege escalation"]);
}

#[test]
fn pods_are_closed_beyond_the_profile() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        assert_eq!(rendered.one("ServiceAccount")["automountServiceAccountToken"], false);
        for template in rendered.templates() {
            let (spec, container) = (&template["spec"], &template["spec"]["containers"][0]);
            assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
            assert_eq!(container["image"], IMAGE);
            assert_eq!(spec["serviceAccountName"], rendered.one("ServiceAccount")["metadata"]["name"]);
            assert_eq!(spec["automountServiceAccountToken"], false);
            assert_eq!(spec["enableServiceLinks"], false);
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            // The user of the image, whose group can read the secrets.
            let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
            let (user, group) = (&spec["securityContext"]["runAsUser"], &spec["securityContext"]["fsGroup"]);
            assert!(dockerfile.contains(&format!("USER {user}:{group}\n")));
            assert_eq!(spec["volumes"][0]["secret"]["defaultMode"], 0o440);
            assert!(container["volumeMounts"][0]["subPath"].is_null(), "a rotation would not be visible");
            assert!(container["env"].is_null(), "settings outside of the ConfigMap are not part of its hash");
            assert_eq!(
                container["envFrom"][0]["configMapRef"]["name"],
                rendered.one("ConfigMap")["metadata"]["name"]
            );
            assert_eq!(container["envFrom"].as_array().unwrap().len(), 1);
        }
        // Components that the script selects, and the parts of a policy.
        assert_eq!(rendered.one("Job")["metadata"]["name"], "migrate-1-2-3-rc1");
        let policies: Vec<_> = rendered.0.iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
        let deny = policies.iter().find(|policy| policy["metadata"]["name"] == "deny").unwrap();
        assert_eq!(deny["spec"], json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        let ports = |name: &str, way: &str| {
            let policy = policies.iter().find(|policy| policy["metadata"]["name"] == name).unwrap();
            let rules = items(&policy["spec"][way]).iter();
            let rules = rules.inspect(|rule| {
                assert!(!rule["to"].is_null() || !rule["from"].is_null(), "the rule allows any address")
            });
            rules.flat_map(|rule| items(&rule["ports"])).map(|port| number(&port["port"])).collect::<Vec<_>>()
        };
        assert_eq!(policies.len(), 3);
        assert_eq!(ports("ingress", "ingress"), [8080, 9090]);
        assert_eq!(ports("egress", "egress"), [53, 53, 5432, 6379]);
    }
}

#[test]
fn the_service_accepts_the_settings() {
    let compose = &parse(&fs::read_to_string(root().join("docker-compose.prod.yml")).unwrap())[0]["x-app"];
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        let secrets = TempDir::new().unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_app"));
        check.args(["config", "check"]).env_clear().env("HOSTNAME", "pod");
        let readme = fs::read_to_string(root().join("deploy/kubernetes/README.md")).unwrap();
        for (name, value) in &rendered.settings() {
            let value = text(value);
            let file = value.strip_prefix("/secrets/").filter(|_| name.ends_with("_FILE"));
            let file = file.map(|file| {
                assert!(readme.contains(&format!("--from-file={file}")), "the README does not create {file}");
                let path = secrets.path().join(file);
                fs::write(&path, "secret").unwrap();
                path.into_os_string()
            });
            check.env(name, file.unwrap_or_else(|| value.into()));
        }
        run(&mut check);

        // Settings that are not addresses have the values of the compose stack.
        let other = "SERVICE__ENVIRONMENT DATABASE__HOST DATABASE__SSL_MODE DATABASE__PASSWORD_FILE REDIS__HOST \
                     REDIS__PASSWORD_FILE LOG__LEVEL OTLP__ENDPOINT OTLP__SAMPLE_RATIO";
        let is_same =
            |name: &&String| !other.split(' ').any(|other| name.strip_prefix("APP__") == Some(other));
        let settings = rendered.settings();
        for name in compose["environment"].as_object().unwrap().keys().filter(is_same) {
            assert_eq!(settings.get(name), Some(&compose["environment"][name]), "{name}");
        }
        assert_eq!(settings["APP__DATABASE__SSL_MODE"], "verify-full");
        assert!(text(&settings["APP__REDIS__URL"]).starts_with("rediss://"));
        assert!(!text(&settings["APP__REDIS__URL"]).contains('@'), "a password in a ConfigMap");
        assert_eq!(settings["APP__SERVICE__ENVIRONMENT"], overlay);
    }
}

/// Parses bytes, or thousandths of a CPU.
fn quantity(value: &Value) -> u64 {
    // Compose has defaults of variables, and writes `M` where Kubernetes writes `Mi`.
    let value = text(value);
    let value = value.split_once(":-").map_or(value, |(_, default)| default.trim_end_matches('}'));
    match value.trim_end_matches('i').strip_suffix('M') {
        Some(mebibytes) => mebibytes.parse::<u64>().unwrap() << 20,
        None => match value.strip_suffix('m') {
            Some(thousandths) => thousandths.parse().unwrap(),
            None => (value.parse::<f64>().unwrap() * 1000.0) as u64,
        },
    }
}

#[test]
fn resources_are_those_of_the_compose_stack() {
    let compose = &parse(&fs::read_to_string(root().join("docker-compose.prod.yml")).unwrap())[0]["services"];
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        for (template, service) in rendered.templates().into_iter().zip(["blue", "migrate"]) {
            let (here, there) =
                (&template["spec"]["containers"][0]["resources"], &compose[service]["deploy"]["resources"]);
            assert_eq!(quantity(&here["limits"]["cpu"]), quantity(&there["limits"]["cpus"]));
            assert_eq!(quantity(&here["limits"]["memory"]), quantity(&there["limits"]["memory"]));
            assert_eq!(quantity(&here["requests"]["memory"]), quantity(&there["reservations"]["memory"]));
        }
        // The autoscaler has to act below the CPU limit.
        let metric = &rendered.one("HorizontalPodAutoscaler")["spec"]["metrics"][0]["resource"];
        let limit = &rendered.templates()[0]["spec"]["containers"][0]["resources"]["limits"]["cpu"];
        assert!(quantity(&metric["target"]["averageValue"]) < quantity(limit));
    }
}

#[test]
fn times_keep_their_order() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        let (deployment, pod) = (&rendered.one("Deployment")["spec"], &rendered.templates()[0]["spec"]);
        assert_eq!(number(&pod["terminationGracePeriodSeconds"]), rendered.pause("shutdown.grace"));
        let container = &pod["containers"][0];
        assert!(container["lifecycle"].is_null(), "a preStop hook would use up the grace period");
        let port = items(&container["ports"]).iter().find(|port| port["name"] == "management").unwrap();
        assert_eq!(port["containerPort"].to_string(), rendered.setting("management.port"));
        let probe = |name: &str, path: &str| {
            let probe = &container[format!("{name}Probe")];
            assert_eq!(probe["httpGet"], json!({"path": path, "port": "management"}), "{name}");
            let period = number(&probe["periodSeconds"]);
            assert!(number(&probe["timeoutSeconds"]) <= period, "{name}");
            period * number(&probe["failureThreshold"])
        };
        let progress = number(&deployment["progressDeadlineSeconds"]);
        assert!(
            progress < probe("startup", "/health/startup"),
            "a restart would come before the rollout fails"
        );
        assert!(probe("readiness", "/health/ready") < rendered.pause("shutdown.ready_delay"));
        probe("liveness", "/health/live");

        let check = rendered.pause("health.interval") + rendered.pause("health.timeout");
        let failures: u64 = rendered.setting("health.failures").parse().unwrap();
        let available = number(&deployment["minReadySeconds"]);
        assert!(check * failures < available, "a pod would count as available while its database is down");
        assert!(available < progress);
        let script = fs::read_to_string(root().join("deploy/kubernetes/deploy")).unwrap();
        let timeout = script.split("! of_namespace rollout status deployment/app --timeout=").nth(1).unwrap();
        let timeout = humantime::parse_duration(timeout.split(';').next().unwrap()).unwrap();
        assert!(Duration::from_secs(progress) < timeout);
    }
}

#[test]
fn connections_fit_and_selectors_find_the_service_alone() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(overlay);
        let (deployment, scaler) =
            (&rendered.one("Deployment")["spec"], rendered.one("HorizontalPodAutoscaler"));
        let budget = &rendered.one("PodDisruptionBudget")["spec"];
        assert!(deployment["replicas"].is_null(), "the autoscaler sets the number of replicas");
        let (least, most) = (number(&scaler["spec"]["minReplicas"]), number(&scaler["spec"]["maxReplicas"]));
        assert!(0 < least && least < most);

        let rolling = &deployment["strategy"]["rollingUpdate"];
        assert_eq!(rolling, &json!({"maxSurge": 1, "maxUnavailable": 0}));
        let grace = number(&rendered.templates()[0]["spec"]["terminationGracePeriodSeconds"]);
        let draining = grace.div_ceil(number(&deployment["minReadySeconds"]));
        let pods = most + number(&rolling["maxSurge"]) + number(&budget["maxUnavailable"]) + draining;
        // Besides the pool: health check, renewal, and the trial of new credentials (src/platform/config/default.toml).
        let each = rendered.setting("database.max_connections").parse::<u64>().unwrap() + 3;
        let needed = pods * each + 1 + 3; // the migration, and the connections that PostgreSQL reserves for superusers
        let given = text(&scaler["metadata"]["annotations"]["postgres-max-connections"]).parse().unwrap();
        println!("{overlay}: {pods} pods of {each} connections, {needed} of {given} in all");
        assert!(needed < given);
        let overlay = root().join("deploy/kubernetes/overlays").join(overlay).join("kustomization.yaml");
        assert!(
            fs::read_to_string(overlay).unwrap().contains(&format!(" {needed} in all.")),
            "the comment has another total"
        );
        // Scale-down drains one pod at a time.
        for policy in items(&scaler["spec"]["behavior"]["scaleDown"]["policies"]) {
            assert_eq!(policy["value"], 1);
            assert!(number(&policy["periodSeconds"]) > grace);
        }

        let target = &scaler["spec"]["scaleTargetRef"];
        assert_eq!(
            (&target["kind"], &target["name"]),
            (&json!("Deployment"), &rendered.one("Deployment")["metadata"]["name"])
        );
        let labels = rendered.templates().map(|template| template["metadata"]["labels"].as_object().unwrap());
        let service = &rendered.one("Service")["spec"];
        let spread = items(&rendered.templates()[0]["spec"]["topologySpreadConstraints"]);
        let spread = spread.iter().map(|one| &one["labelSelector"]["matchLabels"]);
        let selectors = [
            &deployment["selector"]["matchLabels"],
            &budget["selector"]["matchLabels"],
            &service["selector"],
        ];
        for selector in selectors.into_iter().chain(spread) {
            let finds = |labels: &Map<String, Value>| {
                selector.as_object().unwrap().iter().all(|(name, value)| labels.get(name) == Some(value))
            };
            assert_eq!(labels.map(finds), [true, false], "{selector}");
        }
        assert_eq!(service["ports"][0]["targetPort"], "http");
    }
}

/// Runs the script with a fake kubectl, which renders manifests, logs other commands, and answers from `variables`.
fn deploy(arguments: &[&str], variables: &[(&str, &str)]) -> (Output, String) {
    let folder = TempDir::new().unwrap();
    let path = env::var_os("PATH").unwrap();
    let mut programs = env::split_paths(&path).map(|folder| folder.join("kubectl"));
    let real = programs.find(|program| program.exists()).expect("kubectl");
    write_stand_in(&folder.path().join("kubectl"), &real);
    let mut script = Command::new(root().join("deploy/kubernetes/deploy"));
    script.args(arguments).env(
        "PATH",
        env::join_paths([folder.path().into()].into_iter().chain(env::split_paths(&path))).unwrap(),
    );
    let log = folder.path().join("log");
    let output = script.env("LOG", &log).envs(variables.iter().copied()).output().unwrap();
    (output, fs::read_to_string(log).unwrap_or_default())
}

fn write_stand_in(path: &Path, real: &Path) {
    let script = format!(
        r#"#!/usr/bin/env bash
case "$*" in
  kustomize*) exec {} "$@" ;;
  *"get job"*) echo "$JOB" ;;
  *view-last-applied*) if [ -n "$PREVIOUS" ]; then echo "$PREVIOUS"; else result=1; fi ;;
  *--timeout=1s*) result=${{SETTLED:-0}} ;;
  *"rollout status"*) if ! grep -q "rollout status.*15m" "$LOG"; then result=$ROLLOUT; fi ;;
  *"apply --filename -") echo "stdin: $(cat)" >>"$LOG" ;;
esac
echo "$*" >>"$LOG"
exit "${{result:-0}}"
"#,
        real.display()
    );
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Returns the steps in the log, by the first words of each step.
fn steps(log: &str) -> Vec<&'static str> {
    let known =
        ["delete job", "component!=app", "get job", "component=app", "rollout status", "stdin: before"];
    let name = |line: &str| known.into_iter().find(|step| line.contains(step) && !line.contains(" logs "));
    let log = log.replace("rollout status deployment/app --timeout=1s", "");
    log.lines().filter_map(name).collect()
}

#[test]
fn a_deployment_migrates_first_and_rolls_back_when_it_fails() {
    let arguments = ["staging", IMAGE];
    let good = [("JOB", "SuccessCriteriaMet Complete"), ("PREVIOUS", "before"), ("ROLLOUT", "0")];
    let (output, log) = deploy(&arguments, &good);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let overlay = fs::read_to_string(root().join("deploy/kubernetes/overlays/staging/kustomization.yaml"));
    let overlay = overlay.unwrap();
    let namespace = overlay.lines().find_map(|line| line.strip_prefix("namespace: ")).unwrap();
    let namespace = format!("--namespace {namespace} ");
    assert_eq!(steps(&log), ["delete job", "component!=app", "get job", "component=app", "rollout status"]);
    assert!(log.lines().all(|line| !line.contains(" job") || line.contains(&namespace)), "{log}");

    let (output, log) = deploy(&arguments, &[("JOB", "FailureTarget Failed"), good[1], good[2]]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(steps(&log), ["delete job", "component!=app", "get job"]);

    let (output, log) = deploy(&arguments, &[good[0], good[1], ("ROLLOUT", "1")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(steps(&log)[3..], ["component=app", "rollout status", "stdin: before", "rollout status"]);

    // The first deployment has nothing to roll back to; neither has a deployment after one that did not become ready.
    for before in [("PREVIOUS", ""), ("SETTLED", "1")] {
        let (output, log) = deploy(&arguments, &[good[0], good[1], before, ("ROLLOUT", "1")]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(steps(&log)[3..], ["component=app", "rollout status"]);
    }
}

#[test]
fn an_image_without_a_fixed_version_is_refused() {
    let long = format!("app:{}", "1".repeat(51));
    let digest = format!("app@sha256:{}", "a".repeat(63));
    for image in ["", "app", "app:latest", "registry.example:5000/app", "app:-1", "a\"b:1", &long, &digest] {
        let (output, log) = deploy(&["staging", image], &[("JOB", "Complete")]);
        assert_eq!((output.status.code(), log.as_str()), (Some(1), ""), "{image}");
    }
    assert_eq!(deploy(&["nowhere", IMAGE], &[]).0.status.code(), Some(1));
    assert_eq!(deploy(&["staging"], &[]).0.status.code(), Some(1));
    for overlay in OVERLAYS {
        let kustomize =
            ["kustomize", &format!("deploy/kubernetes/overlays/{overlay}")].map(ToOwned::to_owned);
        let bare = run(Command::new("kubectl").args(kustomize).current_dir(root()));
        let unset = bare.matches("image: app:given-by-deploy").count();
        assert_eq!(unset, 2, "without the script the manifests must not run");
    }
}
