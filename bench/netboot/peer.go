package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"portcullis/internal/netns"
	"portcullis/lab"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
)

const peerMAC = "52:54:00:00:be:ef"

// peer is the usual way to do it: dnsmasq answers DHCP, nginx serves the file.
type peer struct {
	dir   string
	hosts *netns.Lab
	gw    *netns.Host
	procs []*exec.Cmd
}

func newPeer(dir, image string) (p *peer, err error) {
	p = &peer{dir: dir}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	dnsmasq, err := lookPath("dnsmasq")
	if err != nil {
		return p, err
	}
	nginx, err := lookPath("nginx")
	if err != nil {
		return p, err
	}
	if p.hosts, err = netns.NewLab("pcbench"); err != nil {
		return p, err
	}
	if p.gw, err = p.hosts.Host("gw"); err != nil {
		return p, err
	}
	if err := p.gw.Tap(wire.PCPort); err != nil {
		return p, err
	}
	if err := p.gw.Address(wire.PCPort, wire.PCLink); err != nil {
		return p, err
	}
	// nginx's worker is another user than root: it needs a way to the files.
	if err := os.Chmod(dir, 0o755); err != nil {
		return p, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `user root;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.err;
events {}
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[2]s:80; root %[3]s; }
}
`, dir, wire.PCLink.Addr(), image), 0o600); err != nil {
		return p, err
	}
	if err := p.start(nginx, "-c", conf, "-p", dir); err != nil {
		return p, err
	}
	return p, p.start(dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--log-facility="+dir+"/dnsmasq.log",
		"--interface="+wire.PCPort, "--bind-interfaces", "--dhcp-range=10.77.0.2,10.77.0.2,1h", "--dhcp-leasefile="+dir+"/leases",
		"--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient",
		"--dhcp-boot=tag:http,http://10.77.0.1/hpc.efi", "--dhcp-authoritative", "--no-ping", "--user=root", "--pid-file="+dir+"/dnsmasq.pid")
}

func (p *peer) start(path string, args ...string) error {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	if err := p.gw.Start(cmd); err != nil {
		return err
	}
	p.procs = append(p.procs, cmd)
	return nil
}

// Close ends the servers and removes the namespace.
func (p *peer) Close() {
	for _, c := range p.procs {
		syscall.Kill(-c.Process.Pid, syscall.SIGTERM)
		c.Wait()
	}
	if p.hosts != nil {
		p.hosts.Close()
	}
}

// boot powers a machine on and returns the seconds to its first userspace line.
func (p *peer) boot(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	if err := p.listening(ctx); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(p.dir, "pc-")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	m, err := qemu.Start(ctx, qemu.Config{Name: "bench-peer", Dir: dir, Firmware: qemu.UEFIHTTP, MAC: peerMAC, Tap: wire.PCPort,
		MemoryMB: 2048, CPUs: 2, Start: p.gw.Start})
	if err != nil {
		return 0, err
	}
	defer m.Kill()
	reached := make(chan float64, 1)
	follow, stop := context.WithCancel(ctx)
	defer stop()
	go lab.Follow(follow, qemu.SerialLog(dir), func(line []byte) {
		e, ok := lab.ParseConsole(string(line), time.Now())
		if ok && e.Name == "pc.stage" && e.Text("stage") == "init" {
			select {
			case reached <- time.Since(began).Seconds():
			default:
			}
		}
	})
	select {
	case s := <-reached:
		return s, nil
	case <-m.Done():
		return 0, errors.New("QEMU ended")
	case <-ctx.Done():
		return 0, fmt.Errorf("no line of hpc-init on the console: %w", ctx.Err())
	}
}

// listening waits until nginx answers.
func (p *peer) listening(ctx context.Context) error {
	for {
		c, err := p.gw.Dial(ctx, "tcp", net.JoinHostPort(wire.PCLink.Addr().String(), "80"))
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nginx does not listen: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
