package probe

import (
	"context"
	"io"
	"slices"
	"testing"

	"portcullis/attestserver/protocol"
	"portcullis/lab/channel"
)

// The kernel of this machine names a program that somebody holds, by its kind
// and its loader's name, and no longer when it is gone.
func TestTrace_NamesAProgram(t *testing.T) {
	held := func() bool {
		list, err := bpfObjects()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(o protocol.BPFObject) bool {
			return o.Kind == protocol.BPFProgram && o.Type == 1 && o.Name == "tamper" && len(o.Tag) == 16
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- channel.Tool(ctx, nil, w, []string{"bpf", "1h"}) }()
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if !held() {
		t.Error("the program is not listed")
	}
	cancel()
	<-done
}

func TestParseRoutes(t *testing.T) {
	const table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n" +
		"eth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\neth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
	routes, err := parseRoutes(table)
	if err != nil || len(routes) != 2 || routes[0] != (protocol.Route{To: "0.0.0.0/0", Gateway: "10.77.0.1", Link: "eth0"}) || routes[1].To != "10.77.0.0/24" {
		t.Errorf("%+v %v", routes, err)
	}
	for _, bad := range []string{"h\neth0\n", "h\neth0 zz 0 0 0 0 0 0\n", "h\neth0 00 00000000 0 0 0 0 00000000\n"} {
		if _, err := parseRoutes(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	for s, want := range map[string]string{"0100007F:9683": "", "00000000:0016": "0.0.0.0:22", "00000000000000000000000001000000:0016": "",
		"0000000000000000FFFF00000100007F:0016": "", "00000000000000000000000000000000:0050": "[::]:80", "xx:1": "", "": ""} {
		if at, ok := listening(s); at != want || ok != (want != "") {
			t.Errorf("%q: %q", s, at)
		}
	}
}

// systemd tries at its start what the kernel can: such a program is gone at once.
func TestTrace_OnlyWhatLastsIsTold(t *testing.T) {
	for _, gone := range []bool{true, false} {
		asked := 0
		p := &Trace{Host{BPF: func() ([]protocol.BPFObject, error) {
			list := []protocol.BPFObject{{Kind: protocol.BPFProgram, ID: 3, Type: 15}}
			if asked++; asked == 1 || !gone {
				list = append(list, protocol.BPFObject{Kind: protocol.BPFProgram, ID: 8, Type: 18, Name: "sd_bind4"})
			}
			return list, nil
		}}}
		list, err := p.lasting(t.Context())
		want := 1
		if !gone {
			want = 2
		}
		if err != nil || len(list) != want {
			t.Errorf("gone %t: %v %v", gone, list, err)
		}
	}
}
