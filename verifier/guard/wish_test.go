package guard

import (
	"reflect"
	"strings"
	"testing"

	"portcullis/verifier/approval"
)

// What docker run writes, where the user says nothing but image and command.
const fromDockerRun = `{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,"Tty":false,
"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["a","b"],"Image":"img:1","Volumes":{},"WorkingDir":"","Entrypoint":null,"OnBuild":null,
"Labels":{"portcullis.purpose":"service/pxed"},"HostConfig":{"Binds":null,"LogConfig":{"Type":"","Config":{}},"NetworkMode":"default",
"RestartPolicy":{"Name":"no","MaximumRetryCount":0},"AutoRemove":true,"ConsoleSize":[0,0],"MemorySwappiness":-1,"Privileged":false,
"Devices":[],"PidsLimit":0,"MaskedPaths":null,"ReadonlyPaths":null},"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"Links":null,
"MacAddress":"","IPPrefixLen":0}}}}`

func TestWish(t *testing.T) {
	w, err := parseWish([]byte(fromDockerRun))
	if err != nil {
		t.Fatal(err)
	}
	want := wish{image: "img:1", purpose: "service/pxed", command: []string{"a", "b"}, network: "default", remove: true}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("%+v, want %+v", w, want)
	}
	for name, c := range map[string]struct{ body, reason string }{
		"empty":              {``, ReasonJSON},
		"a list":             {`[]`, ReasonJSON},
		"two objects":        {`{"Image":"a"}{"Image":"b"}`, ReasonJSON},
		"cut":                {`{"Image":"a"`, ReasonJSON},
		"comma":              {`{"Image":"a",}`, ReasonJSON},
		"key twice":          {`{"Image":"good","Image":"bad"}`, ReasonJSON},
		"key in two cases":   {`{"Image":"good","image":"bad"}`, ReasonJSON},
		"escaped twin":       {`{"Image":"good","\u0049mage":"bad"}`, ReasonJSON},
		"long s":             {`{"Image":"good","Labels":null,"Label\u017f":{}}`, ReasonJSON},
		"sign of the kelvin": {`{"Image":"good","HostConfig":{"NetworkMode":"none","Networ\u212aMode":"host"}}`, ReasonJSON},
		"nested twice":       {`{"Image":"a","HostConfig":{"Memory":1,"Memory":2}}`, ReasonJSON},
		"not UTF-8":          {"{\"Image\":\"\xff\"}", ReasonJSON},
		"deep":               {`{"Image":"a","Labels":` + strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 40) + `}`, ReasonJSON},
		"no image":           {`{}`, ReasonField},
		"image is a list":    {`{"Image":["a"]}`, ReasonField},
		"small letters":      {`{"image":"a"}`, ReasonField},
		"unknown field":      {`{"Image":"a","Rootfs":"/"}`, ReasonField},
		"unknown host field": {`{"Image":"a","HostConfig":{"Rootfs":"/"}}`, ReasonField},
		"host is a list":     {`{"Image":"a","HostConfig":[]}`, ReasonField},
		"privileged":         {`{"Image":"a","HostConfig":{"Privileged":true}}`, ReasonField},
		"binds":              {`{"Image":"a","HostConfig":{"Binds":["/:/h"]}}`, ReasonField},
		"mount of an image":  {`{"Image":"a","HostConfig":{"Mounts":[{"Type":"image","Source":"b","Target":"/b"}]}}`, ReasonField},
		"volumes from":       {`{"Image":"a","HostConfig":{"VolumesFrom":["b"]}}`, ReasonField},
		"unmasked":           {`{"Image":"a","HostConfig":{"MaskedPaths":[]}}`, ReasonField},
		"unconfined":         {`{"Image":"a","HostConfig":{"SecurityOpt":["seccomp=unconfined"]}}`, ReasonField},
		"restarts":           {`{"Image":"a","HostConfig":{"RestartPolicy":{"Name":"always"}}}`, ReasonField},
		"negative":           {`{"Image":"a","HostConfig":{"Memory":-1}}`, ReasonField},
		"fraction":           {`{"Image":"a","HostConfig":{"Memory":1.5}}`, ReasonField},
		"huge":               {`{"Image":"a","HostConfig":{"Memory":1e30}}`, ReasonField},
		"label":              {`{"Image":"a","Labels":{"x":"y"}}`, ReasonField},
		"purpose":            {`{"Image":"a","Labels":{"portcullis.purpose":"A B"}}`, ReasonField},
		"variable no value":  {`{"Image":"a","Env":["A"]}`, ReasonField},
		"variable twice":     {`{"Image":"a","Env":["A=1","A=2"]}`, ReasonField},
		"NUL":                {`{"Image":"a","Cmd":["\u0000"]}`, ReasonField},
		"network endpoint":   {`{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"x":{"IPAddress":"10.0.0.1"}}}}`, ReasonField},
		"check":              {`{"Image":"a","Healthcheck":{"Test":["CMD","x"]}}`, ReasonField},
		"standard input":     {`{"Image":"a","OpenStdin":true}`, ReasonField},
	} {
		_, err := parseWish([]byte(c.body))
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if reason, _ := reasonOf(err); reason != c.reason {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
}

// A wish takes what was approved where it says nothing, and what it asks stays for
// the approvals to judge.
func TestWishedProfile(t *testing.T) {
	approved := approval.Profile{User: "1:1", Capabilities: []string{"CAP_NET_RAW"}, Network: "host", AnyCommand: true, Env: []string{"A", "B=2"},
		Limits: approval.Limits{MemoryBytes: 1 << 20, Pids: 9, MilliCPU: 500}}
	got := wish{}.profile(approved, []string{"/probe"})
	want := approved
	want.AnyCommand, want.Env = false, []string{"B=2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("nothing said: %+v", got)
	}
	got = wish{user: "0:0", network: "none", caps: []string{"net_admin"}, command: []string{"x"}, env: []string{"B=3", "A=1"}, memory: 5, pids: 6, nanoCPUs: 1}.
		profile(approved, []string{"/probe"})
	want = approval.Profile{User: "0:0", Capabilities: []string{"CAP_NET_ADMIN"}, Network: "none", Command: []string{"/probe", "x"}, Env: []string{"A=1", "B=3"},
		Limits: approval.Limits{MemoryBytes: 5, Pids: 6, MilliCPU: 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("all said: %+v", got)
	}
	if err := approved.Covers(&got); approval.Reason(err) != approval.ReasonProfile {
		t.Errorf("covered: %v", err)
	}
	for nano, milli := range map[int64]int64{1: 1, 1e6: 1, 1e6 + 1: 2, 500e6: 500, 500e6 + 1: 501} {
		if got := (wish{nanoCPUs: nano}).profile(approved, nil).Limits.MilliCPU; got != milli {
			t.Errorf("%d billionths of a core are %d thousandths, not %d", nano, got, milli)
		}
	}
}

// TestAttack_MoreProcessorThanNumbersGo: a number that has no room to be rounded up in is no small one.
func TestAttack_MoreProcessorThanNumbersGo(t *testing.T) {
	approved := approval.Profile{User: "1:1", Network: "none", AnyCommand: true, Limits: approval.Limits{MemoryBytes: 1 << 20, Pids: 9, MilliCPU: 500}}
	for _, nano := range []string{"9223372036854775807", "9223372036854000001", "500000001"} {
		w, err := parseWish([]byte(`{"Image":"a","Cmd":["x"],"HostConfig":{"NanoCpus":` + nano + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		p := w.profile(approved, nil)
		if err := approved.Covers(&p); approval.Reason(err) != approval.ReasonProfile || p.Limits.MilliCPU <= 500 {
			t.Errorf("%s: %d thousandths of a core, %v", nano, p.Limits.MilliCPU, err)
		}
	}
}

func FuzzParseWish(f *testing.F) {
	f.Add([]byte(fromDockerRun))
	f.Add([]byte(`{"Image":"a","Image":"b"}`))
	f.Add([]byte(`{"Image":"a","HostConfig":{"Memory":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := parseWish(body)
		if err != nil {
			if reason, _ := reasonOf(err); reason != ReasonJSON && reason != ReasonField {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		if w.image == "" || !approval.IsPurpose(w.purpose) {
			t.Errorf("%q: %+v", body, w)
		}
	})
}
