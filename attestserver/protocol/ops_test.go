package protocol

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// hexHead stands where a SHA-256 in hex is wanted.
var hexHead = strings.Repeat("ab", 32)

var idtExample = base64.StdEncoding.EncodeToString(make([]byte, IDTSize))

type checked interface{ Check() error }

// opTypes are all parameters and data of the ops, with an example of each.
var opTypes = []struct {
	name    string
	fresh   func() checked
	example string
}{
	{"boot", func() checked { return &BootData{} }, `{"cmdline":"a","release":"6.12","notes_sha256":"00","boot_id":"x","lockdown":"integrity","tainted":0,"kexec_loaded":false,"uptime_ms":5,"traced":null,"doors":["kexec","modules"],"helpers":[{"name":"modprobe","value":"/sbin/modprobe"}]}`},
	{"block parameters", func() checked { return &BlockParams{} }, `{"blocks":[1,2,3]}`},
	{"block", func() checked { return &BlockData{} }, `{"device":"loop0","direct":true,"verity":{"device":"dm-0","targets":1}}`},
	{"procs", func() checked { return &ProcsData{} }, `{"processes":[{"pid":1,"ppid":0,"start":5,"comm":"init","exe":"/init"}],"kernel":3,"files":[{"path":"/init","segments":[{"offset":0,"length":4096}],"pids":[1]}],"anonymous":[],"mounts":[],"vanished":0,"restless":[{"pid":7,"ppid":1,"start":9,"comm":"sh","exe":"/usr/bin/dash"}]}`},
	{"pmem parameters", func() checked { return &PmemParams{} }, `{"seed":"` + strings.Repeat("ab", 32) + `","extra":4}`},
	{"pmem", func() checked { return &PmemData{} }, `{"pages":[{"path":"/init","segment":{"offset":0,"length":4096},"pick":0,"offset":0,"pid":1,"mac":"00"}],"vanished":0}`},
	{"modules parameters", func() checked { return &ModulesParams{} }, `{"modules":[{"name":"a","text":[{"name":".text","size":5000}],"layout":true,"pieces":[{"part":0,"offset":4096,"size":904}]}]}`},
	{"modules", func() checked { return &ModulesData{} }, `{"modules":[{"name":"a","build_id":"00","taint":"","state":"Live"}],"only_sys":["b"],"only_proc":null,"text":[{"name":"a","sum":"` + hexHead[:32] + `","layout":[{"name":".text","address":18446744072635809792}]}],"raw":"AAAA"}`},
	{"net", func() checked { return &NetData{} }, `{"links":[{"name":"lo","index":1,"loopback":true}],"routes":[{"to":"0.0.0.0/0","gateway":"10.0.0.1","link":"eth0"}],"listeners":["tcp 0.0.0.0:22"],"packet":0,"raw":[{"family":"ip","protocol":6,"sockets":2}],"radios":null}`},
	{"hw", func() checked { return &HwData{} }, `{"cpu_class":"intel-6.1","memory_kib":5,"uptime_ms":1,"components":[{"class":"pci","slot":"0","value":"1"}]}`},
	{"tpm parameters", func() checked { return &TpmParams{} }, `{"session":"aaaaaaaaaaaaaaaaaaaaaaaaaa","nonce":"` + strings.Repeat("A", 43) + `=","identify":true,"log":true,"list_from":5}`},
	{"tpm", func() checked { return &TpmData{} }, `{"present":true,"ek_kind":"ecc-p256","ek":"AA==","quote":{"message":"AA==","signature":"AA==","pcrs":[{"index":9,"value":"` + strings.Repeat("00", 32) + `"}]}}`},
	{"tsm parameters", func() checked { return &TsmParams{} }, `{"session":"aaaaaaaaaaaaaaaaaaaaaaaaaa","nonce":"` + strings.Repeat("A", 43) + `="}`},
	{"tsm", func() checked { return &TsmData{} }, `{"present":true,"provider":"tdx_guest","report":"AA=="}`},
	{"trace", func() checked { return &TraceData{} }, `{"tainted":0,"objects":[{"kind":"program","id":3,"type":15,"name":"sd_devices","tag":"00","program":0}],"keyrings":[{"name":".machine","keys":["asymmetric;x"]}]}`},
	{"uevent parameters", func() checked { return &UeventParams{} }, `{"from":7}`},
	{"uevent", func() checked { return &UeventData{} }, `{"first":7,"head_from":"` + hexHead + `","events":[{"action":"add","path":"/devices/x","subsystem":"usb","synthetic":false,"at_ms":5}],"head":"` + hexHead + `","total":9,"lost":0}`},
	{"krodata parameters", func() checked { return &KrodataParams{} }, `{"pieces":[1,2]}`},
	{"krodata", func() checked { return &KrodataData{} }, `{"base":1,"size":4096,"macs":"AAAAAAAAAAA=","raw":null,"idt_at":5,"idt":"` + idtExample + `"}`},
	{"files parameters", func() checked { return &FilesParams{} }, `{"roots":["/etc"],"content":["/etc"]}`},
	{"files", func() checked { return &FilesData{} }, `{"dirs":[{"path":"/etc","mac":"AAAAAAAAAAA="}],"changed":[{"path":"/etc/x","mode":33188,"uid":0,"gid":0,"size":1,"ctime":5,"target":"","sha256":null}],"opened":["AAAAAAAAAAA="]}`},
	{"time parameters", func() checked { return &TimeParams{} }, `{"rounds":5}`},
	{"time", func() checked { return &TimeData{} }, `{"raw_ns":1,"boot_ms":2,"wall_ms":3,"work_ns":4,"source":"tsc","mhz":5,"total_ticks":6,"steal_ticks":0}`},
	{"noise parameters", func() checked { return &NoiseParams{} }, `{"seed":"` + hexHead + `","size":4096,"slices":[{"offset":0,"length":4096}]}`},
	{"noise", func() checked { return &NoiseData{} }, `{"size":4096,"locked":true,"fill_ms":1}`},
	{"container", func() checked { return &ContainerData{} }, `{"containers":[{"id":"a","image":"b","genuine":true,"command":"c","privileged":["d"],"upper":"e","written":["f"]}],"strays":[{"pid":1,"comm":"x","cgroup":"y"}]}`},
	{"ima parameters", func() checked { return &ImaParams{} }, `{"from":5}`},
	{"ima", func() checked { return &ImaData{} }, `{"from":1,"head_from":"` + hexHead + `","entries":[{"digest":"00","path":"/x"}],"head":"` + hexHead + `","total":2,"violations":0}`},
	{"ktext parameters", func() checked { return &KtextParams{} }, `{"sites":true}`},
	{"ktext", func() checked { return &KtextData{} }, `{"base":1,"size":4096,"mask_sha256":"00","macs":"AAAAAAAAAAA=","sites":null}`},
}

func TestDecodeOp_Examples(t *testing.T) {
	for _, o := range opTypes {
		if err := DecodeOp([]byte(o.example), MaxData, o.fresh()); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
		for _, bad := range []string{"", "null x", o.example + " {}", strings.Replace(o.example, "{", `{"unknown":1,`, 1), "[]", "5"} {
			if err := DecodeOp([]byte(bad), MaxData, o.fresh()); err == nil {
				t.Errorf("%s: %.60q was accepted", o.name, bad)
			}
		}
		if err := DecodeOp([]byte(o.example), len(o.example)-1, o.fresh()); err == nil {
			t.Errorf("%s: more than the limit was read", o.name)
		}
	}
}

func TestDecodeOp_Limits(t *testing.T) {
	many := func(one string, n int) string { return "[" + strings.Repeat(one+",", n) + one + "]" }
	long := `"` + strings.Repeat("x", MaxString+1) + `"`
	for i, bad := range []struct{ op, data string }{
		{"boot", `{"helpers":[{"name":"modprobe"},{"name":"core_pattern"}]}`}, {"boot", `{"helpers":[{"name":"hotplug"}]}`},
		{"boot", `{"helpers":[{"name":"modprobe","value":` + long + `}]}`}, {"boot", `{"helpers":[{"name":"modprobe"},{"name":"modprobe"}]}`},
		{"boot", `{"uptime_ms":-1}`}, {"boot", `{"cmdline":` + long + `}`}, {"boot", `{"traced":` + many(`"x"`, MaxTraced) + `}`},
		{"block parameters", `{"blocks":[]}`}, {"block parameters", `{"blocks":` + many("1", MaxBlocks) + `}`}, {"block parameters", `{"blocks":[-1]}`},
		{"block", `{"device":` + long + `}`},
		{"procs", `{"processes":` + many("{}", MaxProcesses) + `}`}, {"procs", `{"files":` + many("{}", MaxFiles) + `}`}, {"procs", `{"mounts":` + many("{}", MaxMounts) + `}`},
		{"procs", `{"anonymous":` + many("{}", MaxFiles) + `}`}, {"procs", `{"files":[{"segments":` + many("{}", MaxSegments) + `}]}`},
		{"procs", `{"files":[{"pids":` + many("1", MaxFilePIDs) + `}]}`}, {"procs", `{"files":[{"path":` + long + `}]}`}, {"procs", `{"processes":[{"exe":` + long + `}]}`},
		{"procs", `{"mounts":[{"point":` + long + `}]}`}, {"procs", `{"restless":` + many("{}", MaxRestless) + `}`}, {"procs", `{"restless":[{"comm":` + long + `}]}`},
		{"pmem parameters", `{"seed":"00","extra":1}`}, {"pmem parameters", `{"seed":"` + strings.Repeat("00", 32) + `","extra":-1}`},
		{"pmem parameters", `{"seed":"` + strings.Repeat("00", 32) + `","extra":5000}`},
		{"pmem", `{"pages":` + many("{}", MaxPages+MaxFiles) + `}`}, {"pmem", `{"pages":[{"path":` + long + `}]}`},
		{"modules", `{"modules":` + many("{}", MaxModules) + `}`}, {"modules", `{"only_sys":[` + long + `]}`}, {"modules", `{"modules":[{"name":` + long + `}]}`},
		{"modules", `{"text":` + many("{}", MaxModuleAsks) + `}`}, {"modules", `{"text":[{"sum":"00"}]}`}, {"modules", `{"text":[{"name":` + long + `}]}`},
		{"modules", `{"text":[{"layout":` + many("{}", MaxModuleSections) + `}]}`}, {"modules", `{"text":[{"layout":[{"name":` + long + `}]}]}`}, {"modules", `{"text":[{"layout":[{"address":-1}]}]}`},
		{"modules parameters", `{"modules":` + many(`{"name":"a"}`, MaxModuleAsks) + `}`}, {"modules parameters", `{"modules":[{"name":""}]}`}, {"modules parameters", `{"modules":[{"name":".."}]}`},
		{"modules parameters", `{"modules":[{"name":"a","text":` + many(`{"name":"a"}`, MaxModuleSections) + `}]}`}, {"modules parameters", `{"modules":[{"name":"a","text":[{"name":"a","size":33554433}]}]}`},
		{"modules parameters", `{"modules":[{"name":"a","text":[{"name":""}]}]}`}, {"modules parameters", `{"modules":[{"name":"a","pieces":[{"part":0}]}]}`},
		{"modules parameters", `{"modules":[{"name":"a","text":[{"name":"a","size":10}],"pieces":[{"part":0,"offset":5,"size":6}]}]}`},
		{"modules parameters", `{"modules":[{"name":"a","text":[{"name":"a","size":10}],"pieces":` + many(`{"part":0,"size":1}`, MaxModulePieces) + `}]}`},
		{"net", `{"links":` + many("{}", MaxLinks) + `}`}, {"net", `{"links":[{"name":` + long + `}]}`},
		{"net", `{"routes":` + many("{}", MaxRoutes) + `}`}, {"net", `{"listeners":` + many(`""`, MaxSockets) + `}`}, {"net", `{"radios":[` + long + `]}`}, {"net", `{"raw":` + many(`{"family":"ip","sockets":1}`, MaxRaw) + `}`},
		{"net", `{"raw":[{"family":"arp","sockets":1}]}`}, {"net", `{"raw":[{"family":"ip","protocol":256,"sockets":1}]}`}, {"net", `{"raw":[{"family":"ip","sockets":0}]}`}, {"net", `{"routes":[{"to":` + long + `}]}`},
		{"hw", `{"cpu_class":""}`}, {"hw", `{"cpu_class":"A"}`}, {"hw", `{"cpu_class":"a","uptime_ms":-1}`}, {"hw", `{"cpu_class":"a","components":` + many("{}", MaxComponents) + `}`},
		{"hw", `{"cpu_class":"a","components":[{"value":` + long + `}]}`},
		{"tpm parameters", `{"session":"a","nonce":""}`}, {"tpm parameters", `{"session":"aaaaaaaaaaaaaaaaaaaaaaaaaa","nonce":"AAAA"}`},
		{"tpm parameters", `{"session":"aaaaaaaaaaaaaaaaaaaaaaaaaa","nonce":"` + strings.Repeat("A", 43) + `=","list_from":-1}`},
		{"tpm parameters", `{"session":"aaaaaaaaaaaaaaaaaaaaaaaaaa","nonce":"` + strings.Repeat("A", 43) + `=","secret":"AAAA"}`},
		{"tpm", `{"fault":` + long + `}`}, {"tpm", `{"ek":"` + strings.Repeat("AAAA", MaxTpmKey) + `"}`}, {"tpm", `{"log":"` + strings.Repeat("AAAA", MaxTpmLog/3+1) + `"}`},
		{"tpm", `{"quote":{"message":"` + strings.Repeat("AAAA", MaxTpmKey) + `"}}`}, {"tpm", `{"quote":{"pcrs":[{"index":24,"value":"` + strings.Repeat("00", 32) + `"}]}}`},
		{"tpm", `{"quote":{"pcrs":[{"index":1,"value":"00"}]}}`}, {"tpm", `{"quote":{"pcrs":` + many("{}", 24) + `}}`},
		{"tsm parameters", `{"session":"","nonce":""}`}, {"tsm", `{"provider":` + long + `}`}, {"tsm", `{"certs":"` + strings.Repeat("AAAA", MaxTsmBlob) + `"}`},
		{"krodata", `{"size":0}`}, {"krodata", `{"size":268435457}`}, {"krodata", `{"size":4096,"macs":""}`}, {"krodata", `{"size":4096,"macs":"AAAAAAAAAAA=","idt":""}`},
		{"krodata parameters", `{"pieces":` + many("1", MaxRodataPieces) + `}`},
		{"files parameters", `{"roots":[]}`}, {"files parameters", `{"roots":["etc"]}`}, {"files parameters", `{"roots":` + many(`"/"`, MaxTrees) + `}`},
		{"files", `{"dirs":` + many("{}", MaxTreeDirs) + `}`}, {"files", `{"changed":` + many("{}", MaxTreeChanged) + `}`}, {"files", `{"dirs":[{"mac":"AA=="}]}`},
		{"files", `{"opened":["AA=="]}`}, {"files", `{"opened":` + many(`""`, MaxLeaves) + `}`},
		{"files", `{"changed":[{"sha256":"AA=="}]}`}, {"files", `{"changed":[{"path":` + long + `}]}`},
		{"time parameters", `{"rounds":0}`}, {"time parameters", `{"rounds":1048577}`}, {"time", `{"raw_ns":-1}`}, {"time", `{"steal_ticks":1}`}, {"time", `{"source":` + long + `}`},
		{"noise parameters", `{"seed":"00","size":4096}`}, {"noise parameters", `{"seed":"` + hexHead + `","size":4095}`}, {"noise", `{"size":-1}`},
		{"noise parameters", `{"seed":"` + hexHead + `","size":4096,"slices":[{"offset":1,"length":4096}]}`},
		{"noise parameters", `{"seed":"` + hexHead + `","size":4096,"slices":` + many(`{"offset":0,"length":1}`, MaxSlices) + `}`},
		{"container", `{"containers":` + many("{}", MaxContainers) + `}`}, {"container", `{"strays":` + many("{}", MaxContainers) + `}`},
		{"container", `{"containers":[{"privileged":` + many(`""`, MaxPrivileges) + `}]}`}, {"container", `{"containers":[{"written":` + many(`""`, MaxWritten) + `}]}`},
		{"container", `{"containers":[{"id":` + long + `}]}`}, {"container", `{"strays":[{"comm":` + long + `}]}`},
		{"ima", `{"from":2,"total":1,"head":"` + hexHead + `","head_from":"` + hexHead + `"}`}, {"ima", `{"head":"00","head_from":"00"}`},
		{"ima", `{"total":9000,"entries":` + many("{}", MaxMeasurements) + `,"head":"` + hexHead + `","head_from":"` + hexHead + `"}`},
		{"ima", `{"total":1,"entries":[{"path":` + long + `}],"head":"` + hexHead + `","head_from":"` + hexHead + `"}`},
		{"trace", `{"objects":` + many("{}", MaxBPFObjects) + `}`}, {"trace", `{"keyrings":` + many("{}", MaxKeyrings) + `}`}, {"trace", `{"keyrings":[{"keys":` + many(`""`, MaxKeys) + `}]}`},
		{"trace", `{"objects":[{"name":` + long + `}]}`}, {"trace", `{"keyrings":[{"keys":[` + long + `]}]}`},
		{"uevent", `{"head":"00","head_from":"00"}`}, {"uevent", `{"first":2,"total":1,"head":"` + hexHead + `","head_from":"` + hexHead + `"}`},
		{"uevent", `{"total":5000,"events":` + many("{}", MaxUevents) + `,"head":"` + hexHead + `","head_from":"` + hexHead + `"}`},
		{"uevent", `{"total":1,"events":[{"path":` + long + `}],"head":"` + hexHead + `","head_from":"` + hexHead + `"}`},
		{"ktext", `{"size":0}`}, {"ktext", `{"size":268435457}`}, {"ktext", `{"size":4096,"macs":""}`}, {"ktext", `{"size":4096,"macs":"AAAAAAAAAAA=","mask_sha256":` + long + `}`},
	} {
		for _, o := range opTypes {
			if o.name == bad.op {
				if err := DecodeOp([]byte(bad.data), MaxEnrolData, o.fresh()); err == nil {
					t.Errorf("%d: %s took %.80s", i, bad.op, bad.data)
				}
			}
		}
	}
}

// The page of a segment must lie inside of it, whatever the segment says.
func TestPickPage(t *testing.T) {
	seen := map[uint64]bool{}
	var key OpKey
	for pick := range 200 {
		s := Segment{Offset: 0x3000, Length: 0x5000}
		at := key.MACs().PickPage("seed", "/bin/a", s, pick)
		if at < s.Offset || at >= s.Offset+s.Length || at%PageSize != 0 {
			t.Fatalf("page at %#x", at)
		}
		seen[at] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d of 5 pages were ever picked", len(seen))
	}
	a := key.MACs().PickPage("seed", "/bin/a", Segment{Length: 1 << 30}, 0)
	if a == key.MACs().PickPage("other", "/bin/a", Segment{Length: 1 << 30}, 0) || a == key.MACs().PickPage("seed", "/bin/b", Segment{Length: 1 << 30}, 0) {
		t.Error("seed and path do not decide")
	}
	key[0] = 1
	if a == key.MACs().PickPage("seed", "/bin/a", Segment{Length: 1 << 30}, 0) {
		t.Error("the key does not decide")
	}
	if at := key.MACs().PickPage("seed", "/bin/a", Segment{}, 0); at != 0 {
		t.Errorf("empty segment: %#x", at)
	}
}

func FuzzDecodeOp(f *testing.F) {
	for i, o := range opTypes {
		f.Add(uint8(i), []byte(o.example))
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		o := opTypes[int(which)%len(opTypes)]
		v := o.fresh()
		if err := DecodeOp(data, MaxData, v); err != nil {
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodeOp(again, MaxEnrolData, o.fresh()); err != nil {
			t.Fatalf("%s: what was read cannot be read again: %v", o.name, err)
		}
	})
}

func BenchmarkKtextMACs(b *testing.B) {
	var key OpKey
	text := make([]byte, 16<<20)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		for i := 0; i < len(text)/KtextGranule; i++ {
			key.MACs().KtextMAC(i, text[i*KtextGranule:][:KtextGranule])
		}
	}
}

// The noise is the same from whatever byte it is computed.
func TestNoise_CanBeComputedFromAnywhere(t *testing.T) {
	var seed [32]byte
	whole := make([]byte, 3000)
	Noise(seed, 0, whole)
	for _, at := range []int64{0, 1, 15, 16, 17, 1000, 2990} {
		part := make([]byte, 10)
		Noise(seed, at, part)
		if !bytes.Equal(part, whole[at:at+10]) {
			t.Errorf("from byte %d it is another", at)
		}
	}
	seed[0] = 1
	other := make([]byte, 3000)
	Noise(seed, 0, other)
	if bytes.Equal(other, whole) {
		t.Error("the seed does not decide")
	}
}
