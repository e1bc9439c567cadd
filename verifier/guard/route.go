package guard

import (
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// MinAPI is the oldest version of the API that callers may speak, the minor number of 1.41.
const MinAPI = 41

// MaxAPI is the newest, that of Docker 29: what a later one means is not known here.
const MaxAPI = 56

// bodies of an endpoint.
const (
	noBody = iota
	jsonBody
	tarBody
)

// endpoint is one thing that callers may ask. Everything else is refused.
type endpoint struct {
	method string
	path   string                    // segments; {container} and {image} stand for a name
	query  map[string]*regexp.Regexp // the parameters that exist
	body   int
	attach bool // the connection becomes the container's output
	moves  bool // it starts, ends, removes or can hold up the container: not one that the verifier runs for itself
	do     func(*Guard, *call) error
}

var (
	isTruth  = regexp.MustCompile(`^(0|1|true|false)$`)
	isNumber = regexp.MustCompile(`^-?[0-9]{1,9}$`)
	isTime   = regexp.MustCompile(`^[0-9TZ:.+-]{1,40}$`)
	isTail   = regexp.MustCompile(`^(all|[0-9]{1,9})$`)
	isSignal = regexp.MustCompile(`^[A-Z0-9+-]{1,16}$`)
	isWait   = regexp.MustCompile(`^(not-running|next-exit|removed)$`)
	isName   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$`)
	// isImage has no empty and no dotted segment: clients of engines clean a path before they send it,
	// so that "a/../../distribution/host/name" would be no image any more (create has it in its body).
	isImage = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9_.:@-]*(/[a-zA-Z0-9_][a-zA-Z0-9_.:@-]*)*$`)
)

type query = map[string]*regexp.Regexp

// endpoints is the whole table.
var endpoints []endpoint

func init() {
	endpoints = []endpoint{
		{method: "GET", path: "_ping", do: (*Guard).pass},
		{method: "HEAD", path: "_ping", do: (*Guard).pass},
		{method: "GET", path: "version", do: (*Guard).pass},
		{method: "GET", path: "containers/json", query: query{"all": isTruth, "limit": isNumber}, do: (*Guard).pass},
		{method: "POST", path: "containers/create", query: query{"name": isName}, body: jsonBody, do: (*Guard).create},
		{method: "GET", path: "containers/{container}/json", do: (*Guard).pass},
		{method: "GET", path: "containers/{container}/logs", query: query{"stdout": isTruth, "stderr": isTruth, "follow": isTruth,
			"timestamps": isTruth, "details": isTruth, "tail": isTail, "since": isTime, "until": isTime}, do: (*Guard).pass},
		// Engines hold a container's output up while somebody is attached who does not read it.
		{method: "POST", path: "containers/{container}/attach", query: query{"stdout": isTruth, "stderr": isTruth, "stream": isTruth,
			"logs": isTruth}, attach: true, moves: true, do: (*Guard).attach},
		{method: "POST", path: "containers/{container}/start", moves: true, do: (*Guard).start},
		{method: "POST", path: "containers/{container}/stop", query: query{"t": isNumber, "signal": isSignal}, moves: true, do: (*Guard).pass},
		{method: "POST", path: "containers/{container}/kill", query: query{"signal": isSignal}, moves: true, do: (*Guard).pass},
		{method: "POST", path: "containers/{container}/wait", query: query{"condition": isWait}, do: (*Guard).pass},
		{method: "DELETE", path: "containers/{container}", query: query{"force": isTruth, "v": isTruth}, moves: true, do: (*Guard).pass},
		{method: "GET", path: "images/json", query: query{"all": isTruth}, do: (*Guard).pass},
		{method: "GET", path: "images/{image}/json", do: (*Guard).pass},
		{method: "POST", path: "images/load", query: query{"quiet": isTruth}, body: tarBody, do: (*Guard).load},
	}
}

var (
	// plainPath has one reading: no escape, no empty or dotted segment, no NUL.
	plainPath = regexp.MustCompile(`^(/[A-Za-z0-9_][A-Za-z0-9_.:@-]*)+$`)
	versioned = regexp.MustCompile(`^/v1\.([1-9][0-9]?)(/.+)$`)
)

// find reads the request line. newest is the minor version of the engine's API.
func find(r *http.Request, newest int) (*endpoint, *call, error) {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		return nil, nil, refuse(ReasonHTTPVersion, "%.20q", r.Proto)
	}
	path, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	if !plainPath.MatchString(path) || len(r.RequestURI) > 4096 {
		return nil, nil, refuse(ReasonPath, "%.200q", path)
	}
	c := &call{version: newest, newest: newest}
	if m := versioned.FindStringSubmatch(path); m != nil {
		c.version, _ = strconv.Atoi(m[1]) // two digits
		if c.version < MinAPI || c.version > newest {
			return nil, nil, refuse(ReasonVersion, "1.%d; 1.%d to 1.%d are spoken", c.version, MinAPI, newest)
		}
		path = m[2]
	}
	var e *endpoint
	for i := range endpoints {
		if endpoints[i].method == r.Method && c.match(path[1:], endpoints[i].path) {
			e = &endpoints[i]
			break
		}
	}
	if e == nil {
		return nil, nil, refuse(ReasonEndpoint, "%.20q %.200q", r.Method, path)
	}
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, nil, refuse(ReasonQuery, "%.200q", rawQuery)
	}
	for key, list := range values {
		form := e.query[key]
		if form == nil || len(list) != 1 || list[0] != "" && !form.MatchString(list[0]) {
			return nil, nil, refuse(ReasonQuery, "%.80q = %.80q", key, list)
		}
		if list[0] == "" {
			values.Del(key)
		}
	}
	c.query, c.moves = values, e.moves
	return e, c, checkHeaders(r, e)
}

// match compares a path with a pattern and takes the name out of it.
func (c *call) match(path, pattern string) bool {
	head, rest, named := strings.Cut(pattern, "{")
	if !named {
		c.path = path
		return path == pattern
	}
	kind, tail, _ := strings.Cut(rest, "}")
	name, ok := strings.CutPrefix(path, head)
	if !ok || !strings.HasSuffix(name, tail) {
		return false
	}
	name = strings.TrimSuffix(name, tail)
	form := isName
	if kind == "image" {
		form = isImage
	}
	if !form.MatchString(name) || name == "json" || name == "create" || name == "load" {
		return false
	}
	c.kind, c.name, c.head, c.tail = kind, name, head, tail
	return true
}

// mayNot are headers that change what a request means, or claim to be ours.
var mayNot = []string{"Content-Encoding", "Trailer", "X-Http-Method-Override", "X-Portcullis-Stamp", "Upgrade-Insecure-Requests"}

func checkHeaders(r *http.Request, e *endpoint) error {
	for _, h := range mayNot {
		if _, ok := r.Header[h]; ok {
			return refuse(ReasonHeader, "%s", h)
		}
	}
	up := r.Header.Values("Upgrade")
	if len(up) > 0 && !(e.attach && len(up) == 1 && up[0] == "tcp") {
		return refuse(ReasonUpgrade, "%.40q", up)
	}
	chunked := len(r.TransferEncoding) > 0
	switch e.body {
	case noBody:
		if chunked || r.ContentLength != 0 {
			return refuse(ReasonLength, "%s takes no body", e.path)
		}
	case jsonBody:
		if chunked || r.ContentLength <= 0 || r.ContentLength > maxCreate {
			return refuse(ReasonLength, "%d bytes, chunked %v; 1 to %d with their length are taken", r.ContentLength, chunked, maxCreate)
		}
		if t := r.Header.Values("Content-Type"); len(t) != 1 || t[0] != "application/json" {
			return refuse(ReasonType, "%.80q", t)
		}
	case tarBody:
		if r.ContentLength == 0 {
			return refuse(ReasonLength, "no archive")
		}
		if t := r.Header.Values("Content-Type"); len(t) != 1 || t[0] != "application/x-tar" {
			return refuse(ReasonType, "%.80q", t)
		}
	}
	return nil
}

// maxCreate is the largest body of a create: far below 1 MiB, from which on engines
// before 29.3.1 hide a body from their plugins (CVE-2026-34040).
const maxCreate = 256 << 10
