//! The profile "restricted" of the Pod Security Standards, which the API server checks at admission.

use serde_json::{Value, json};

use crate::{items, text};

/// Returns whether the value is unset or one of `allowed`.
fn is_unset_or(value: &Value, allowed: &[&str]) -> bool {
    value.is_null() || value.as_str().is_some_and(|value| allowed.contains(&value))
}

/// Returns the violated controls of the Pod Security Standards' profile "restricted", including those of "baseline", as of
/// v1.37.
#[expect(clippy::too_many_lines, reason = "a list of controls")]
pub fn violations(template: &Value) -> Vec<&'static str> {
    let spec = &template["spec"];
    let pod = &spec["securityContext"];
    let kinds = ["containers", "initContainers", "ephemeralContainers"];
    let containers: Vec<&Value> = kinds.iter().flat_map(|kind| items(&spec[*kind])).collect();
    let own: Vec<&Value> = containers.iter().map(|container| &container["securityContext"]).collect();
    let all: Vec<&Value> = own.iter().copied().chain([pod]).collect();
    // Set for the pod and not overridden, or set by each container.
    let covered = |field: &str, is_good: &dyn Fn(&Value) -> bool| {
        let fine =
            |context: &&Value| is_good(&context[field]) || context[field].is_null() && is_good(&pod[field]);
        own.iter().all(fine) && (pod[field].is_null() || is_good(&pod[field]))
    };
    let added =
        |context: &&Value| items(&context["capabilities"]["add"]).iter().all(|one| one == "NET_BIND_SERVICE");
    let dropped = |context: &&Value| items(&context["capabilities"]["drop"]).contains(&json!("ALL"));
    let handlers = |container: &&Value| {
        let probes =
            ["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| container[probe].clone());
        let hooks = ["postStart", "preStop"].map(|hook| container["lifecycle"][hook].clone());
        let handlers: Vec<_> = probes.into_iter().chain(hooks).collect();
        ["httpGet", "tcpSocket"]
            .iter()
            .all(|way| handlers.iter().all(|one| is_unset_or(&one[*way]["host"], &[""])))
    };
    let selinux = |context: &&Value| {
        let options = &context["seLinuxOptions"];
        let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        let is_named = |name: &str| is_unset_or(&options[name], &[""]);
        is_unset_or(&options["type"], &types) && is_named("user") && is_named("role")
    };
    let apparmor =
        |context: &&Value| is_unset_or(&context["appArmorProfile"]["type"], &["RuntimeDefault", "Localhost"]);
    let annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let apparmor_annotations = annotations.iter().all(|(name, value)| {
        let profile = text(value);
        !name.starts_with("container.apparmor.security.beta.kubernetes.io/")
            || profile == "runtime/default"
            || profile.starts_with("localhost/")
    });
    let volumes = "configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret";
    let is_volume = |volume: &Value| {
        let mut keys = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        keys.all(|key| volumes.split(' ').any(|allowed| allowed == key))
    };
    let sysctls = "kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_unprivileged_port_start \
                   net.ipv4.tcp_syncookies net.ipv4.ping_group_range net.ipv4.ip_local_reserved_ports \
                   net.ipv4.tcp_keepalive_time net.ipv4.tcp_fin_timeout net.ipv4.tcp_keepalive_intvl \
                   net.ipv4.tcp_keepalive_probes net.ipv4.tcp_rmem net.ipv4.tcp_wmem";
    let is_sysctl = |one: &Value| sysctls.split(' ').any(|allowed| one["name"] == allowed);
    let ports = || containers.iter().flat_map(|container| items(&container["ports"]));
    let controls = [
        ("host process", all.iter().all(|context| context["windowsOptions"]["hostProcess"] != true)),
        ("host namespaces", ["hostNetwork", "hostPID", "hostIPC"].iter().all(|name| spec[*name] != true)),
        ("privileged", own.iter().all(|context| context["privileged"] != true)),
        ("capabilities", own.iter().all(|context| added(context) && dropped(context))),
        ("volume types", items(&spec["volumes"]).iter().all(is_volume)),
        ("host ports", ports().all(|port| port["hostPort"].as_u64().unwrap_or_default() == 0)),
        ("hosts of probes and hooks", containers.iter().all(handlers)),
        ("AppArmor", all.iter().all(apparmor) && apparmor_annotations),
        ("SELinux", all.iter().all(selinux)),
        ("proc mount", own.iter().all(|context| is_unset_or(&context["procMount"], &["Default"]))),
        ("sysctls", items(&pod["sysctls"]).iter().all(is_sysctl)),
        ("privilege escalation", own.iter().all(|context| context["allowPrivilegeEscalation"] == false)),
        ("non-root", covered("runAsNonRoot", &|value| value == true)),
        ("user", all.iter().all(|context| context["runAsUser"] != 0)),
        (
            "seccomp",
            covered("seccompProfile", &|value| {
                value["type"] == "RuntimeDefault" || value["type"] == "Localhost"
            }),
        ),
    ];
    controls.into_iter().filter(|(_, kept)| !kept).map(|(name, _)| name).collect()
}
