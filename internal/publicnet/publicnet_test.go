package publicnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, public := range []string{"1.1.1.1", "9.255.255.255", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1", "::ffff:1.1.1.1"} {
		if err := Check(netip.MustParseAddr(public)); err != nil {
			t.Errorf("%s: %v", public, err)
		}
	}
	for _, private := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.8", "192.168.1.1",
		"198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.1.1.1", "fe80::1", "fe80::1%eth0",
		"fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "2001::1", "2002:7f00:1::", "2001:db8::1",
	} {
		if err := Check(netip.MustParseAddr(private)); !errors.Is(err, ErrNotPublic) {
			t.Errorf("%s: %v", private, err)
		}
	}
	if err := Check(netip.Addr{}); !errors.Is(err, ErrNotPublic) {
		t.Errorf("no address: %v", err)
	}
}

func TestControl(t *testing.T) {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	dialer := &net.Dialer{Control: Control}
	if conn, err := dialer.DialContext(context.Background(), "tcp", socket.Addr().String()); !errors.Is(err, ErrNotPublic) {
		if err == nil {
			conn.Close()
		}
		t.Errorf("a loopback address was dialled: %v", err)
	}
	if err := Control("tcp", "nonsense", nil); !errors.Is(err, ErrNotPublic) {
		t.Errorf("what is no address: %v", err)
	}
}
